"""`maverick doctor RUN_DIR`: verify every checkpoint of a run and report from which one it can resume.

It needs neither the run's devices nor its memory: arrays are read in blocks and compared with the checksums that were
computed on the devices when they were saved. It changes nothing and can be used while the run is alive.
"""

import pathlib
from typing import Any

from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import CheckFailed, InputError, NoRestorableCheckpoint


def doctor(run_dir) -> dict[str, Any]:
    """The report: `checkpoints` (step, restorable, problems, bytes), `set_aside` (names of folders), and
    `restorable_step` (the newest restorable step, or None).

    Raises InputError if `run_dir` has never held a checkpoint.
    """
    directory = pathlib.Path(run_dir) / "checkpoints"
    store = CheckpointStore(directory, read_only=True)
    steps, aside = store.steps(), store.set_aside()
    if not steps and not aside:
        raise InputError(f"{run_dir}: expected a run directory with checkpoints, but {directory} holds none")
    found = [_examine(store, directory, step) for step in steps]
    restorable = [entry["step"] for entry in found if entry["restorable"]]
    return {
        "run_dir": str(run_dir),
        "restorable_step": max(restorable, default=None),
        "checkpoints": found,
        "set_aside": aside,
    }


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = []
    for entry in report["checkpoints"]:
        state = "intact" if entry["restorable"] else "DAMAGED"
        lines.append(f"step {entry['step']}: {state}, {entry['bytes']:,} bytes")
        lines += [f"  {problem}" for problem in entry["problems"]]
    lines += [f"{name}: found damaged and set aside earlier" for name in report["set_aside"]]
    step = report["restorable_step"]
    return "\n".join([*lines, "nothing can be restored" if step is None else f"the run can resume from step {step}"])


def require_healthy(report: dict[str, Any]) -> None:
    """Raises NoRestorableCheckpoint if nothing can be restored, CheckFailed if a checkpoint is damaged."""
    damaged = [entry["step"] for entry in report["checkpoints"] if not entry["restorable"]]
    if report["restorable_step"] is None:
        raise NoRestorableCheckpoint(f"{report['run_dir']}: no checkpoint passes verification")
    if damaged:
        raise CheckFailed(f"{report['run_dir']}: damaged checkpoints of steps {damaged}")


def _examine(store: CheckpointStore, directory: pathlib.Path, step: int) -> dict[str, Any]:
    problems = store.verify(step)
    size = sum(path.stat().st_size for path in (directory / str(step)).rglob("*") if path.is_file())
    return {"step": step, "restorable": not problems, "problems": problems, "bytes": size}
