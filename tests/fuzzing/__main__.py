"""`python -m tests.fuzzing [SECONDS] [SEED] [TARGET ...]`: runs all readers of foreign data on malformed data.

Each target runs in its own process, whose death is a finding too. Prints a line for each target and each finding, and
exits with 1 if there is a finding.
"""

import json
import pathlib
import secrets
import subprocess
import sys

from tests.fuzzing.harness import ROOT
from tests.fuzzing.targets import WEIGHTS, scratch_folder

GRACE = 900
"""Seconds beyond its share that a target may take: to make its files, to end."""


def main(seconds: float, seed: int, *names: str) -> int:
    names = names or tuple(WEIGHTS)
    share = seconds / sum(WEIGHTS[name] for name in names)
    print(f"seed {seed}, {seconds:.0f} s, {len(names)} targets", flush=True)
    told = [_in_a_process(name, share * WEIGHTS[name], seed + number) for number, name in enumerate(names)]
    examples, found = sum(t["examples"] for t in told), [f for t in told for f in t["findings"]]
    print(*found, f"{examples} examples, {len(found)} findings", sep="\n", flush=True)
    return int(bool(found))


def _in_a_process(name: str, seconds: float, seed: int) -> dict:
    """The target's report, or how its process ended."""
    with scratch_folder() as scratch:
        told, last = pathlib.Path(scratch) / "told.json", pathlib.Path(scratch) / "last.txt"
        command = [sys.executable, "-m", "tests.fuzzing.worker", name, str(seconds), str(seed), scratch]
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=seconds + GRACE, capture_output=True, text=True)
            ended = f"ended with {done.returncode}: {done.stderr[-5000:]}"
        except subprocess.TimeoutExpired:
            ended = "did not end"
        if told.exists():
            found = json.loads(told.read_text())
        else:
            example = last.read_text() if last.exists() else "none yet"
            finding = f"\n==== {name}: the process {ended}\nexample: {example}"
            found = {"line": f"{name}: {ended[:200]}", "examples": 0, "findings": [finding]}
    print(found["line"], flush=True)
    return found


if __name__ == "__main__":
    seconds, seed, *names = [*sys.argv[1:], *("600", "")[len(sys.argv) - 1 :]]
    sys.exit(main(float(seconds), int(seed) if seed else secrets.randbits(32), *names))
