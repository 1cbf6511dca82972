#!/usr/bin/env python
"""Time the data pipeline from JPEG files to rows with tiles, against decoding and transformers' image processor in a
loop.

    python benchmarks/picture_pipeline.py [--pictures N] [--repeats N] [--threads 2]

Both read the same made-up photographs of 640 x 480 to 4000 x 3000 pixels, on the same processors. The tiles are equal
to the bit once ours are looked up in the table of normalized values, as the model does on its device. Also measures the
memory of 64 prefetched rows of 32 tiles. The last line of output is one JSON object. It needs torchvision: see
torchvision_import.py.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.picture_pipeline_worker import write_equal, write_photographs
from benchmarks.worker import Worker, take_cpus
from maverick_jax.errors import MaverickError

MODULE = "benchmarks.picture_pipeline_worker"


def measure(pictures: int, repeats: int) -> dict[str, Any]:
    """Median pictures per second of both programs, which take turns, the median ratio of the pairs, and bytes in memory
    per byte of pixels."""
    with tempfile.TemporaryDirectory() as scratch:
        photographs, equal = pathlib.Path(scratch) / "photographs", pathlib.Path(scratch) / "equal"
        photographs.mkdir()
        equal.mkdir()
        path = write_photographs(photographs, pictures)
        with Worker(MODULE, ["ours", str(path)]) as mine, Worker(MODULE, ["transformers", str(path)]) as theirs:
            for worker in (mine, theirs):
                worker.ask("run")  # prepares the data, and warms up caches and lazy imports
            pairs = [(mine.ask("run"), theirs.ask("run")) for _ in range(repeats)]
            versions = mine.ready["versions"] | theirs.ready["versions"]
        with Worker(MODULE, ["memory", str(write_equal(equal, 80))]) as worker:
            memory = worker.ask("run")
    rate = lambda which, key: statistics.median(pictures / pair[which][key] for pair in pairs)
    return {
        "benchmark": "picture_pipeline",
        "pictures": pictures,
        "rows": pairs[0][0]["rows"],
        "tiles": pairs[0][1]["tiles"],
        "per_second": rate(0, "seconds"),
        "per_cpu_second": rate(0, "cpu_seconds"),
        "peer_per_second": rate(1, "seconds"),
        "peer_per_cpu_second": rate(1, "cpu_seconds"),
        "ratio": statistics.median(b["seconds"] / a["seconds"] for a, b in pairs),
        "cpu_ratio": statistics.median(b["cpu_seconds"] / a["cpu_seconds"] for a, b in pairs),
        "memory_bytes": memory["bytes"],
        "memory_ratio": memory["bytes"] / memory["pixels"],
        "repeats": repeats,
        "load_average": os.getloadavg()[0],
        "versions": versions,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="processors for each program")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    try:
        take_cpus(args.threads)
        result = measure(args.pictures, args.repeats)
    except MaverickError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if not args.json:
        print(
            f"{result['per_second']:.1f} pictures per second, transformers {result['peer_per_second']:.1f}: "
            f"{result['ratio']:.2f} times as many; {result['memory_ratio']:.2f} bytes per byte of pixels"
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
