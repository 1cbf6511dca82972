"""Golden runs: losses, checkpoint checksums and export digests of 20 steps of every shipped tiny run and variants.

python -m tests.helpers.golden_runs tests/golden/runs.json      writes the record
python -m tests.helpers.golden_runs                             runs again and compares with it

Runs must be equal to the bit on the machine that made the record. On other machines the last bits depend on the
processor, so losses are compared with a tolerance and digests are not compared.
"""

import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

import numpy as np

from tests.helpers.small_run import REPOSITORY, checksums, contents, losses

RECORD = REPOSITORY / "tests" / "golden" / "runs.json"
STEPS = 20
TOLERANCE = 2e-3
"""Relative tolerance of losses on another processor: rounding differences grow over 20 updates."""

SHARED = [f"run.steps={STEPS}", "run.eval_every=10", "run.eval_batches=2", "logging.progress=false", "logging.every=1"]
"""Overrides of every run."""

CASES: dict[str, list[str]] = {
    "pretrain_tiny": ["pretrain_tiny"],
    "demo": ["demo"],
    "pretrain_teacher_tiny": ["pretrain_teacher_tiny"],
    "distill_tiny": ["distill_tiny", "objective.teacher=pretrain_teacher_tiny", "objective.teacher_config=null"],
    "distill_tiny_dense": ["distill_tiny_dense", "objective.teacher=pretrain_tiny", "objective.teacher_config=null"],
    "trajectory_tiny": ["trajectory_tiny", "data.sequence_length=512"],
    "mesh": ["pretrain_tiny", "mesh.fsdp=2", "mesh.expert=2", "mesh.tensor=2"],
    "vision": ["pretrain_tiny", "model=tiny_vision", "data.sequence_length=128"],
    "layers": ["pretrain_tiny", "model={init_from: pretrain_tiny, init_layers: [2, 1, 0, 3]}"],
}
"""Command-line words of `maverick train`. A run that starts from another one comes after it."""


def machine() -> str:
    """The processor and versions that determine the last bits of a run."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines() if pathlib.Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    vectors = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if flag in flags]
    return " ".join([platform.machine(), model, *vectors, f"{os.cpu_count()} cores", f"jaxlib {version('jaxlib')}"])


def run_all(folder: pathlib.Path) -> dict[str, dict]:
    """Trains and exports every case in `folder`."""
    found = {}
    for name, words in CASES.items():
        began = time.monotonic()
        found[name] = run(name, words, folder)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def run(name: str, words: list[str], folder: pathlib.Path) -> dict:
    """Runs one case. Returns its losses by step, checksums of the final state and digests of the exported files."""
    maverick(folder, ["train", *words, f"run.dir={name}", *SHARED])
    maverick(folder, ["export", name, f"{name}.export"])
    return {
        "losses": losses(folder / name),
        "checksums": checksums(folder / name, STEPS),
        "export": contents(folder / f"{name}.export"),
    }


def maverick(folder: pathlib.Path, words: list[str]) -> None:
    """Runs a command in a process like a user's, on eight simulated devices if it sets a mesh."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAVERICK", "SLURM", "XLA_FLAGS"))}
    more = {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8" if any(word.startswith("mesh.") for word in words) else "1",
        "MAVERICK_CACHE": str(folder / "cache"),
        "NPROC": "32",
    }
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *words], cwd=folder, env=kept | more, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def compare(record: dict, found: dict[str, dict]) -> list[str]:
    """One line per difference: exact on the record's machine, losses to TOLERANCE elsewhere."""
    exact, lines = record["machine"] == machine(), []
    for name, there in record["cases"].items():
        here = found[name]
        if exact:
            lines += [f"{name}: {what} differ" for what in there if there[what] != here[what]]
        elif not np.allclose(there["losses"], here["losses"], rtol=TOLERANCE, atol=0):
            lines.append(f"{name}: losses differ by more than {TOLERANCE}")
        else:
            lines += [
                f"{name}: names in {what} differ"
                for what in ("export", "checksums")
                if set(there[what]) != set(here[what])
            ]
    return lines


def main(*arguments: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        found = run_all(pathlib.Path(folder))
    if arguments:
        record = {"machine": machine(), "steps": STEPS, "cases": found}
        pathlib.Path(arguments[0]).write_text(json.dumps(record, indent=1) + "\n")
        return 0
    record = json.loads(RECORD.read_text())
    differences = compare(record, found)
    exact = "to the bit" if record["machine"] == machine() else f"losses to {TOLERANCE}"
    print("\n".join(differences) or f"{len(found)} golden runs are the same, {exact}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
