#!/usr/bin/env python
"""Whether a small model of code that learns fill-in-the-middle fills in what its left-to-right twin cannot.

    python benchmarks/fill_in_the_middle.py --work FOLDER [--seeds 0 1 2] [--variants filled plain]

The texts are Python's own standard library (the modules of `sysconfig`'s folder `stdlib`), in pieces of LINES lines.
One file in ten is held out, by a hash of its name. `filled` has most training pieces rearranged by the source's
`fill_in_the_middle`; `plain` is the same model, pieces, updates and seeds without. Asked is about a few tokens inside a
held-out piece: `plain` reads what stands before them, and `filled` also what stands after, in both orders (PSM and
SPM). They are filled exactly if each is the likeliest one, for `filled` also the end after them. Runs that are there
are not repeated. The last line is JSON.
"""

import argparse
import functools
import hashlib
import json
import pathlib
import random
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.short_runs import ShortRuns, placed_batches
from data.config import DataConfig
from data.fill_in_the_middle import Sentinels
from data.graders.figures import figure, paired
from data.tokenizer_training import train_tokenizer
from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import single_device_mesh
from maverick_jax.text import Tokenizer, load_tokenizer
from train.config import RunConfig
from train.config_files import read_config

LIBRARY = pathlib.Path(sysconfig.get_paths()["stdlib"])
LINES, LONGEST = 2, 160
"""Lines and most characters of a piece."""
VOCABULARY, WIDTH, LENGTH, ROWS, UPDATES, RATE = 512, 96, 256, 16, 700, 4e-3
VARIANTS = {"filled": {"rate": 0.9, "suffix_first": 0.5}, "plain": None}
QUESTIONS, AT_A_TIME, MOST_TOKENS, SHORT = 2048, 64, 8, 2
"""Held-out middles; of most tokens; those of `SHORT` tokens at most are short."""
SPECIAL = 5
"""Tokens of a question besides the piece's: the beginning, three before its parts, the end."""


# ---- texts -----------------------------------------------------------------------------------------------------------


def pieces(paths: Sequence[pathlib.Path]) -> Iterator[tuple[str, str]]:
    """(File, text) of consecutive lines of all files that are UTF-8; blank pieces and long ones are left out."""
    for path in paths:
        try:
            lines = path.read_text("utf-8").splitlines(keepends=True)
        except UnicodeDecodeError:
            continue
        for begin in range(0, len(lines), LINES):
            text = "".join(lines[begin : begin + LINES])
            if text.strip() and len(text) <= LONGEST:
                yield path.name, text


def is_held_out(path: pathlib.Path) -> bool:
    return hashlib.sha256(path.name.encode()).digest()[0] % 10 == 0


def write_texts(folder: pathlib.Path, library: pathlib.Path = LIBRARY) -> None:
    """The pieces to train on, `train.jsonl`, those that are held out, and a tokenizer of the former, unless they are
    there. Raises SystemExit without sources of the standard library."""
    if (folder / "tokenizer").is_dir():
        return
    paths = sorted(library.glob("*.py"))
    if not paths:
        raise SystemExit(f"{library}: no sources of Python's standard library; nothing to learn from")
    for name, chosen in (("train", False), ("held_out", True)):
        found = [{"file": file, "text": text} for file, text in pieces([p for p in paths if is_held_out(p) is chosen])]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    sources = {"code": {"path": str(folder / "train.jsonl")}}
    train_tokenizer(DataConfig.model_validate({"sources": sources}), folder / "tokenizer", VOCABULARY)


class Question(NamedTuple):
    """Some tokens inside a held-out piece, and what stands around them."""

    file: str
    prefix: list[int]
    middle: list[int]
    suffix: list[int]


def questions(folder: pathlib.Path, tokenizer: Tokenizer, count: int = QUESTIONS) -> list[Question]:
    """One each of the first pieces in an order by their contents."""
    found = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    found.sort(key=lambda one: hashlib.sha256(one["text"].encode()).digest())
    asked = (question(one["file"], one["text"], tokenizer) for one in found)
    return [one for one in asked if one is not None][:count]


def question(file: str, text: str, tokenizer: Tokenizer) -> Question | None:
    """The question about a piece, a pure function of its text: 1 to MOST_TOKENS tokens, with others on both sides. None
    if the piece is too short, or does not fit in a row."""
    ids = tokenizer.encode(text)
    if not MOST_TOKENS + 2 <= len(ids) <= LENGTH - SPECIAL:
        return None
    draw = random.Random(text)
    count = draw.randint(1, MOST_TOKENS)
    begin = draw.randint(1, len(ids) - count - 1)
    return Question(file, ids[:begin], ids[begin : begin + count], ids[begin + count :])


def written(asked: Question, order: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What is read before the middle, and what is to be written: the middle and, after a suffix, the end."""
    P, S, M = Sentinels.of(tokenizer.controls, tokenizer.name, "the benchmark")
    assert tokenizer.bos_id is not None and tokenizer.eos_id is not None
    before = {
        "left to right": asked.prefix,
        "PSM": [P, *asked.prefix, S, *asked.suffix, M],
        "SPM": [P, S, *asked.suffix, M, *asked.prefix],
    }[order]
    return [tokenizer.bos_id, *before], [*asked.middle, *([] if order == "left to right" else [tokenizer.eos_id])]


# ---- runs ------------------------------------------------------------------------------------------------------------


def run_config(variant: str, seed: int, folder: pathlib.Path) -> RunConfig:
    """The config of one run."""
    filled = {} if VARIANTS[variant] is None else {"fill_in_the_middle": VARIANTS[variant]}
    source = json.dumps({"path": str(folder / "train.jsonl"), "held_out_fraction": 0, **filled})
    words = {
        "run.seed": seed, "run.steps": UPDATES, "model.vocab_size": VOCABULARY, "model.hidden_size": WIDTH,
        "model.num_local_experts": 0, "model.attention_chunk_size": "null",
        "data.sources": f"{{tinyshakespeare: null, code: {source}}}",
        "data.tokenizer": folder / "tokenizer", "data.cache_dir": folder / "cache", "data.packing": "best_fit",
        "data.sequence_length": LENGTH, "data.batch_size": ROWS, "optimizer.learning_rate": RATE,
        "optimizer.warmup_steps": 50,
    }  # fmt: skip
    return read_config("pretrain_tiny", [f"{key}={value}" for key, value in words.items()])


@functools.cache
def short_runs(folder: pathlib.Path) -> ShortRuns:
    return ShortRuns(run_config("plain", 0, folder))


@jax.jit
def _scores(model: Maverick, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each token after the first: its nats, and whether it is the likeliest, [B, T - 1]."""
    logits = jax.sharding.reshard(model.logits(tokens), jax.P())[:, :-1]
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
    return nats, jnp.argmax(logits, axis=-1) == tokens[:, 1:]


def judged(model: Maverick, asked: Sequence[Question], order: str, tokenizer: Tokenizer) -> dict[str, list]:
    """Of each question: nats per token of the middle, and whether it is filled exactly."""
    nats, exact = [], []
    texts = [written(one, order, tokenizer) for one in asked]
    for begin in range(0, len(texts), AT_A_TIME):
        some = texts[begin : begin + AT_A_TIME]
        tokens = np.zeros((AT_A_TIME, LENGTH), np.int32)
        for row, (before, after) in zip(tokens, some, strict=False):
            row[: len(before) + len(after)] = [*before, *after]
        with jax.set_mesh(single_device_mesh()):
            of_tokens, right = (np.asarray(x) for x in _scores(model, jnp.asarray(tokens)))
        for i, (before, after) in enumerate(some):
            first, middle = len(before) - 1, len(asked[begin + i].middle)
            nats.append(float(of_tokens[i, first : first + middle].mean()))
            exact.append(bool(right[i, first : first + len(after)].all()))
    return {"nats": nats, "exact": exact}


def learned(variant: str, seed: int, folder: pathlib.Path) -> dict[str, Any]:
    """Trains and judges one model, unless its record is there."""
    record = folder / f"{variant}-{seed}.json"
    if record.is_file():
        return json.loads(record.read_text())
    begun, config = time.process_time(), run_config(variant, seed, folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    model, losses = short_runs(folder).train(config, placed_batches(config, "train", UPDATES))
    asked = questions(folder, tokenizer)
    orders = ["left to right", *(["PSM", "SPM"] if variant == "filled" else [])]
    answers = {order: judged(model, asked, order, tokenizer) for order in orders}
    result = {"variant": variant, "seed": seed, "answers": answers, "last_losses": float(losses[-50:].mean()),
              "cpu_seconds": time.process_time() - begun}  # fmt: skip
    record.write_text(json.dumps(result))
    return result


# ---- figures ---------------------------------------------------------------------------------------------------------


def compared(filled: dict[str, Any], plain: dict[str, Any], asked: Sequence[Question]) -> list[dict[str, Any]]:
    """Of one seed: every way to fill in, and its paired differences to the twin; intervals over files."""
    files, twin = [one.file for one in asked], plain["answers"]["left to right"]
    short = [i for i, one in enumerate(asked) if len(one.middle) <= SHORT]
    lines = []
    for variant, run in (("plain", plain), ("filled", filled)):
        for order, found in run["answers"].items():
            line = {"variant": variant, "order": order, "seed": run["seed"], "short_middles": len(short)}
            for name, chosen in (("nats", range(len(asked))), ("exact", range(len(asked))), ("short_exact", short)):
                ours, theirs = ([float(of[name.removeprefix("short_")][i]) for i in chosen] for of in (found, twin))
                gap = paired(theirs, ours, [files[i] for i in chosen])
                line |= {name: figure(ours).value, f"{name}_gap": [gap.difference, gap.low, gap.high]}
            lines.append(line)
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for texts and results")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    write_texts(args.work)
    runs = {(variant, seed): learned(variant, seed, args.work) for seed in args.seeds for variant in args.variants}
    lines = []
    if len(args.variants) == len(VARIANTS):
        asked = questions(args.work, load_tokenizer(args.work / "tokenizer"))
        lines = [line for n in args.seeds for line in compared(runs["filled", n], runs["plain", n], asked)]
        for line in lines:
            print(json.dumps(line), file=sys.stderr)
    seconds = {f"{variant}-{seed}": run["cpu_seconds"] for (variant, seed), run in runs.items()}
    print(json.dumps({"compared": lines, "cpu_seconds": seconds}))


if __name__ == "__main__":
    main()
