"""A fake teacher whose outputs depend only on the row number, for tests of stored targets. As a program it writes
targets slowly enough to be killed: `python -m tests.helpers.stub_targets FOLDER SECONDS_PER_ROW [i n]`."""

import pathlib
import sys
import time

import numpy as np

from data.targets.format import Header
from data.targets.writer import TargetsWriter

HEADER = Header(vocab_size=300, top_k=4, tail_samples=2, dtype="float16", temperature=1.0, seed=0, teacher="a" * 64,
                data="b" * 64, tokenizer="t", sequence_length=8, rows=22, rows_per_part=4)  # fmt: skip


def row_of(index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    fields = {name: rng.integers(0, 300, 8).astype(np.int32) for name in ("tokens", "labels", "positions")}
    return fields | {"segment_ids": np.ones(8, np.int32), "loss_weights": np.ones(8, np.float32)}


def arrays_of(index: int, header: Header = HEADER) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([index, 1])
    made = {}
    for name, (dtype, shape) in header.layout.items():
        drawn = rng.integers(0, header.vocab_size, shape) if dtype.kind == "u" else -rng.exponential(size=shape)
        made[name] = drawn.astype(dtype)
    return made


def write(folder: pathlib.Path, header: Header = HEADER, shard=(0, 1), seconds: float = 0.0):
    """Writes targets with this teacher, like the real program."""
    writer = TargetsWriter.open(folder, header)
    for number in writer.missing(shard):
        with writer.part(number) as part:
            for index in part.rows:
                time.sleep(seconds)
                part.add(index, row_of(index), arrays_of(index, header), {"positions": 8.0})
    return writer.finish()


if __name__ == "__main__":
    words = sys.argv[3:] or ("0", "1")
    write(pathlib.Path(sys.argv[1]), seconds=float(sys.argv[2]), shard=(int(words[0]), int(words[1])))
