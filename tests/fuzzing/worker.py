"""`python -m tests.fuzzing.worker TARGET SECONDS SEED FOLDER`: one target, in little enough memory for this machine.

Leaves `told.json` in FOLDER at its end, and always `last.txt`, the example that it was at.
"""

import json
import logging
import os
import pathlib
import resource
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.fuzzing.harness import Report, fuzz, resident
from tests.fuzzing.targets import make

_ADDRESS_SPACE = 6 << 30
"""What the process may take beyond what it has at the start: an example that wants more is a finding, not a dead
machine."""


def main(name: str, seconds: str, seed: str, folder: str) -> None:
    logging.disable(logging.CRITICAL)
    place = pathlib.Path(folder)
    target = make(name, place)
    limit = resident("VmSize") + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    report = fuzz(target, float(seconds), int(seed), before=lambda example: _note(place / "last.txt", example))
    findings = [
        f"\n==== {name}: {cause}, seed {at}\n{trace}\nexample: {example}"
        for cause, (trace, example, at) in report.findings.items()
    ]
    (place / "told.json").write_text(
        json.dumps({"line": line(report), "examples": report.examples, "findings": findings})
    )


def _note(path: pathlib.Path, example) -> None:
    path.write_text(f"{example!r:.100000}", "utf-8", "backslashreplace")


def line(report: Report) -> str:
    return (
        f"{report.name:10} {report.examples:7} examples in {report.seconds:4.0f} s: {report.taken:7} taken, "
        f"{report.refused:7} refused, {len(report.findings)} findings; "
        f"slowest {report.slowest:.2f} s, largest {report.largest >> 20} MiB"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
