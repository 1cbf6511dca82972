#!/usr/bin/env python
"""Time eight greedy requests of mixed length in our engine, together and one by one, and in transformers' `generate`.

    python benchmarks/engine.py [--shape tiny] [--repeats 3] [--threads 2]

The last line of output is one JSON object. Both have the same float32 weights; the programs take turns.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.engine_worker import CONTEXT, COPIED, LENGTHS, NEW
from benchmarks.ours import model_config
from benchmarks.shapes import SHAPES
from benchmarks.worker import Worker, take_cpus
from maverick_jax.accounting.serving import read_bytes
from maverick_jax.config import ModelConfig
from maverick_jax.errors import MaverickError


def bytes_of_step(config: ModelConfig, rows: int, length: int) -> float:
    """Bytes that a step of `rows` tokens reads at least: float32 weights, of experts those that even routing chooses,
    and the keys and values of `length` positions."""
    keys = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * rows * length
    return read_bytes(config, rows, 0) + 4 * keys


def measure(shape: str, repeats: int, threads: int) -> dict[str, Any]:
    """Medians over `repeats` turns."""
    started = datetime.datetime.now().isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as directory:
        arguments = ["--shape", shape, "--folder", f"{directory}/weights", "--threads", str(threads)]
        with Worker("benchmarks.engine_worker", ["ours", *arguments]) as mine:
            with Worker("benchmarks.engine_worker", ["transformers", *arguments]) as theirs:
                for worker in (mine, theirs):
                    worker.ask("eight")
                turns = [(mine.ask("eight"), theirs.ask("eight"), mine.ask("one")) for _ in range(repeats)]
                versions = mine.ready["versions"] | theirs.ready["versions"]
            steps = [(mine.ask("step"), mine.ask("copy")) for _ in range(repeats)]
            host = mine.ask("host")
    tokens, (one, other, _) = len(LENGTHS) * NEW, turns[0]
    alike = [a == b for a, b in zip(one["tokens"], other["tokens"], strict=True)]
    config = model_config(SHAPES[shape])
    read = bytes_of_step(config, len(LENGTHS), CONTEXT // 2)
    rate = statistics.median(2 * COPIED / copy["seconds"] for _, copy in steps)
    program = statistics.median(step["program"] for step, _ in steps)
    median = lambda values: statistics.median(list(values))
    return {
        "benchmark": "engine",
        "shape": shape,
        "parameters": config.num_parameters(),
        "requests": len(LENGTHS),
        "answers_alike": sum(alike),
        "tokens_per_second": tokens / median(a["seconds"] for a, _, _ in turns),
        "peer_tokens_per_second": tokens / median(b["seconds"] for _, b, _ in turns),
        "ratio": median(b["seconds"] / a["seconds"] for a, b, _ in turns),
        "cpu_ratio": median(b["cpu_seconds"] / a["cpu_seconds"] for a, b, _ in turns),
        "ratio_to_one_at_a_time": median(c["seconds"] / a["seconds"] for a, _, c in turns),
        "cpu_ratio_to_one_at_a_time": median(c["cpu_seconds"] / a["cpu_seconds"] for a, _, c in turns),
        "step_seconds": program,
        "host_seconds_per_step": host["seconds"],
        "host_cpu_seconds_per_step": host["cpu_seconds"],
        "bytes_per_step": read,
        "copy_bytes_per_second": rate,
        "fraction_of_bandwidth": read / program / rate,
        "repeats": repeats,
        "load_average": os.getloadavg()[0],
        "started": started,
        "versions": versions,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    try:
        take_cpus(args.threads)
        print(json.dumps(measure(args.shape, args.repeats, args.threads)))
    except MaverickError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
