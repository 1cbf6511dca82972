#!/usr/bin/env python
"""Time the preprocessing of pictures into tiles, compared with transformers' Llama 4 image processor.

    python benchmarks/images.py [--repeats N] [--threads 2]

The last line of output is one JSON object. Both start from a decoded picture and give bit-identical pixel values.
It needs torchvision: see torchvision_import.py.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.images_worker import PICTURES
from benchmarks.worker import Worker, take_cpus
from maverick_jax.errors import MaverickError


def measure(repeats: int) -> dict[str, Any]:
    """Per picture: median seconds of both programs, which take turns, and the median ratio of the pairs."""
    with (
        Worker("benchmarks.images_worker", ["ours"]) as mine,
        Worker("benchmarks.images_worker", ["transformers"]) as theirs,
    ):
        pictures = {}
        for name, size in PICTURES.items():
            for worker in (mine, theirs):
                worker.ask(name)  # warm up caches and lazy imports
            pairs = [(mine.ask(name), theirs.ask(name)) for _ in range(repeats)]
            pictures[name] = {
                "size": size,
                "seconds": statistics.median(a["seconds"] for a, _ in pairs),
                "peer_seconds": statistics.median(b["seconds"] for _, b in pairs),
                "cpu_seconds": statistics.median(a["cpu_seconds"] for a, _ in pairs),
                "peer_cpu_seconds": statistics.median(b["cpu_seconds"] for _, b in pairs),
                "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in pairs),
            }
        return {
            "benchmark": "images",
            "ratio": pictures["photo"]["ratio"],
            "pictures": pictures,
            "repeats": repeats,
            "load_average": os.getloadavg()[0],
            "versions": mine.ready["versions"] | theirs.ready["versions"],
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="processors for each program")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    try:
        take_cpus(args.threads)
        result = measure(args.repeats)
    except MaverickError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if not args.json:
        for name, found in result["pictures"].items():
            print(f"{name}: {found['seconds'] * 1e3:.0f} ms, transformers {found['peer_seconds'] * 1e3:.0f} ms")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
