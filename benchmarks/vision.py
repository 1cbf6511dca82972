#!/usr/bin/env python
"""Time the image encoder's forward pass and transformers' in turns, in float32.

    python benchmarks/vision.py [--repeats N] [--threads 2]

The last line of output is one JSON object. Both compute the adapter's output from the same pixels at equal shapes.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.vision_worker import SHAPES, flops
from benchmarks.worker import Worker, take_cpus
from maverick_jax.errors import MaverickError


def measure(repeats: int, threads: int, shapes: list[str]) -> dict[str, Any]:
    """Per shape: median seconds of both programs, which take turns, the median ratio of the pairs, and the fraction of
    the matrix rate."""
    arguments = ["--threads", str(threads)]
    with (
        Worker("benchmarks.vision_worker", ["ours", *arguments]) as mine,
        Worker("benchmarks.vision_worker", ["transformers", *arguments]) as theirs,
    ):
        found, rate = {}, 0.0
        for shape in shapes:
            for worker in (mine, theirs):
                worker.ask(shape)  # build and compile
            pairs = [(mine.ask(shape), theirs.ask(shape)) for _ in range(repeats)]
            rate = max(rate, mine.ask("matrix_rate")["flops_per_second"])
            found[shape] = {
                "tiles": SHAPES[shape][0],
                "changes": SHAPES[shape][1],
                "flops": flops(shape),
                "seconds": statistics.median(a["seconds"] for a, _ in pairs),
                "peer_seconds": statistics.median(b["seconds"] for _, b in pairs),
                "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in pairs),
            }
        for shape in found.values():
            shape["fraction_of_peak"] = shape["flops"] / shape["seconds"] / rate
            shape["peer_fraction_of_peak"] = shape["flops"] / shape["peer_seconds"] / rate
        return {
            "benchmark": "vision",
            "ratio": found[shapes[0]]["ratio"],
            "shapes": found,
            "matrix_flops_per_second": rate,
            "repeats": repeats,
            "load_average": os.getloadavg()[0],
            "versions": mine.ready["versions"] | theirs.ready["versions"],
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="processors for each program")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="may be repeated; default: all")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    try:
        take_cpus(args.threads)
        result = measure(args.repeats, args.threads, args.shape or list(SHAPES))
    except MaverickError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if not args.json:
        for name, shape in result["shapes"].items():
            print(
                f"{name}: {shape['seconds']:.3f} s, transformers {shape['peer_seconds']:.3f} s, ratio "
                f"{shape['ratio']:.2f}; {shape['fraction_of_peak']:.0%} and {shape['peer_fraction_of_peak']:.0%} of "
                "the matrix rate"
            )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
