#!/usr/bin/env python
"""Measure the time and memory of online and offline distillation, relative to pretraining.

    python benchmarks/distillation.py [--steps N] [--json]

`online_ratio`: a distillation step over the sum of a pretraining step of the same student and the teacher's forward
pass; `offline_ratio`: a step on stored targets over a pretraining step. Both are medians over rounds in which all four
take turns. `memory_ratio`: peak memory of two steps at a vocabulary of 202,048 over the sum of the peak of pretraining
the same student and the teacher's weights. The last line is one JSON object.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.worker import Worker, environment, take_cpus

NAMES = ("pretrain", "teacher", "online", "offline")


def times(rounds: int) -> dict[str, Any]:
    """Seconds of each step, and the two ratios."""
    import jax

    from benchmarks.distillation_steps import TEACHER, Steps
    from benchmarks.shapes import SHAPES
    from maverick_jax.sharding import make_mesh

    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        steps = Steps(SHAPES["tiny"], TEACHER, NAMES)
        taken: dict[str, list[float]] = {name: [] for name in NAMES}
        for number in range(rounds + 2):
            for name in NAMES:
                began = time.perf_counter()
                steps.loss(name)
                taken[name] += [time.perf_counter() - began] if number > 1 else []
    paired = list(zip(*(taken[name] for name in NAMES), strict=True))
    return {
        "online_ratio": statistics.median(online / (plain + teacher) for plain, teacher, online, _ in paired),
        "offline_ratio": statistics.median(offline / plain for plain, _, _, offline in paired),
        **{f"{name}_seconds": statistics.median(taken[name]) for name in NAMES},
        "rounds": rounds,
    }


def memory() -> dict[str, Any]:
    """Peak bytes of two processes that run two steps each."""
    os.environ.update(environment())
    with Worker("benchmarks.distillation_worker", ["--step", "pretrain"]) as plain:
        pretrain = plain.ready
    with Worker("benchmarks.distillation_worker", ["--step", "online"]) as distilled:
        online = distilled.ready
    return {
        "memory_ratio": online["peak_bytes"] / (pretrain["peak_bytes"] + online["teacher_bytes"]),
        "pretrain_peak_bytes": pretrain["peak_bytes"],
        "online_peak_bytes": online["peak_bytes"],
        "teacher_bytes": online["teacher_bytes"],
        "memory_tokens": online["tokens"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=12, help="number of timed rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    take_cpus(args.threads)
    result = {"benchmark": "distillation", **memory(), **times(args.steps), "load_average": os.getloadavg()[0]}
    if not args.json:
        print(
            f"online {result['online_ratio']:.2f} (goal 1.15), offline {result['offline_ratio']:.2f} (goal 1.1), "
            f"memory {result['memory_ratio']:.2f} (goal 1.5)"
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
