"""Batches of made pairs, and files of short ones."""

import json
import pathlib

import numpy as np

from data.rows.fields import FIELDS
from maverick_jax.config import ModelConfig


def pair_batch(
    config: ModelConfig,
    step: int = 0,
    *,
    rows: int = 8,
    length: int = 40,
    microbatches: int = 1,
    blocks: int = 1,
    mismatched: bool = False,
) -> dict[str, np.ndarray]:
    """A batch of NumPy arrays [A, rows/A, length]. Each row has one pair in each of `blocks` parts, of sides of unequal
    length whose first tokens weigh nothing, and padding. The last row has a pair of which no token counts.
    `mismatched`: every second part has an answer to another prompt instead."""
    rng = np.random.default_rng(step)
    fields = {name: np.full((rows, length), FIELDS[name].fill, FIELDS[name].dtype) for name in NAMES}
    block = length // blocks
    for row in range(rows):
        for number in range(blocks):
            sizes = rng.integers(4, block // 2, 2)
            at = number * block
            if mismatched and number % 2:
                _write(fields, row, at, int(sizes[0]), config.vocab_size, rng, pair=number + 1, side=0, mark=3)
                continue
            for side, size in enumerate(sizes.tolist()):
                _write(fields, row, at, size, config.vocab_size, rng, pair=number + 1, side=side)
                at += size
    last = fields["pair_ids"][-1] == (blocks - 1 if mismatched else blocks)
    fields["loss_weights"][-1][last] = 0
    return {name: x.reshape(microbatches, rows // microbatches, length) for name, x in fields.items()}


NAMES = ("tokens", "labels", "positions", "segment_ids", "loss_weights", "pair_ids", "sides", "pair_turns",
         "pair_turns_left", "pair_tail")  # fmt: skip


def _write(fields, row: int, at: int, size: int, vocabulary: int, rng, *, pair: int, side: int, mark=None) -> None:
    tokens = rng.integers(0, vocabulary, size).astype(np.int32)
    inside, labels = slice(at, at + size), slice(at, at + size - 1)
    fields["tokens"][row, inside] = tokens
    fields["positions"][row, inside] = np.arange(size)
    fields["segment_ids"][row, inside] = 2 * pair - 1 + side
    fields["labels"][row, labels] = tokens[1:]
    weights = rng.choice([0.0, 0.5, 1.0], size - 1)
    weights[0], weights[-1] = 0, 1
    fields["loss_weights"][row, labels] = weights
    fields["pair_ids"][row, labels], fields["sides"][row, labels] = pair, mark or 1 + side
    turns = np.sort(rng.integers(0, 3, size - 1))
    fields["pair_turns"][row, labels], fields["pair_turns_left"][row, labels] = turns, turns.max() - turns
    fields["pair_tail"][row, labels] = np.arange(size - 1) > 4


def apart(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The fields [n, T] with every pair in a row of its own."""
    found = []
    for i in range(len(rows["tokens"])):
        for pair in range(1, rows["pair_ids"][i].max() + 1):
            at = np.isin(rows["segment_ids"][i], (2 * pair - 1, 2 * pair))
            row = {name: np.full_like(x[i], FIELDS[name].fill) for name, x in rows.items()}
            for name, x in rows.items():
                row[name][: at.sum()] = x[i][at]
            row["segment_ids"][: at.sum()] -= 2 * (pair - 1)
            row["pair_ids"][: at.sum()] = np.where(row["pair_ids"][: at.sum()] > 0, 1, 0)
            found.append(row)
    return {name: np.stack([row[name] for row in found]) for name in rows}


def short_pair(number: int) -> dict:
    """A pair in TRL's form, of answers whose lengths depend on `number`."""
    return {
        "prompt": [{"role": "user", "content": f"What is {number} + {number % 3}?"}],
        "chosen": [{"role": "assistant", "content": f"It is {number + number % 3}" + "!" * (number % 4)}],
        "rejected": [{"role": "assistant", "content": f"It is {number + 7}" + "." * (number % 5)}],
    }


def write_pairs(path: pathlib.Path, count: int) -> pathlib.Path:
    """Writes `count` short pairs in TRL's form."""
    path.write_text("".join(json.dumps(short_pair(i)) + "\n" for i in range(count)))
    return path
