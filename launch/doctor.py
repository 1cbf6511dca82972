"""`maverick doctor RUN_DIR`: verify every checkpoint of a run, and every copy, and report from which one it can resume.

It needs neither the run's devices nor its memory: arrays are read in blocks and compared with the checksums that were
computed on the devices when they were saved; copies are read as a whole and compared with their digests. It changes
nothing and can be used while the run is alive.
"""

import contextlib
import pathlib
from typing import Any

import pydantic

from maverick_jax.checkpoint.contents import Damaged
from maverick_jax.checkpoint.copies import Copies, CopiesConfig
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import CheckFailed, InputError, NoRestorableCheckpoint
from maverick_jax.settings import strict_yaml
from maverick_jax.settings.redaction import redact


def doctor(run_dir) -> dict[str, Any]:
    """The report: `checkpoints` (step, stage, restorable, problems, bytes), `set_aside` (names of folders), `copies`
    (None, or `place`, `checkpoints` and `unfinished`, steps), and `restorable_step` (the newest restorable one of both,
    or None).

    Raises InputError if `run_dir` has never held a checkpoint and has no copies.
    """
    directory = pathlib.Path(run_dir) / "checkpoints"
    store, copies = CheckpointStore(directory, read_only=True), _copies_of(pathlib.Path(run_dir))
    steps, aside = store.steps(), store.set_aside()
    of_copies = None if copies is None else _examine_copies(copies)
    if not steps and not aside and not (of_copies and of_copies["checkpoints"]):
        raise InputError(f"{run_dir}: expected a run directory with checkpoints, but {directory} holds none")
    found = [_examine(store, directory, step) for step in steps]
    every = [*found, *(of_copies["checkpoints"] if of_copies else ())]
    return {
        "run_dir": str(run_dir),
        "restorable_step": max((entry["step"] for entry in every if entry["restorable"]), default=None),
        "checkpoints": found,
        "set_aside": aside,
        "copies": of_copies,
    }


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [line for entry in report["checkpoints"] for line in _said(entry, "")]
    lines += [f"{name}: found damaged and set aside earlier" for name in report["set_aside"]]
    copies, step = report["copies"], report["restorable_step"]
    if copies is not None:
        lines += [line for entry in copies["checkpoints"] for line in _said(entry, f"{copies['place']}: ")]
        lines += [f"{copies['place']}: step {step}: not finished; it is no copy" for step in copies["unfinished"]]
    if step is None:
        return "\n".join([*lines, "nothing can be restored"])
    here = any(entry["step"] == step and entry["restorable"] for entry in report["checkpoints"])
    where = "" if copies is None or here else f", of the copy in {copies['place']}"
    return "\n".join([*lines, f"the run can resume from step {step}{where}"])


def require_healthy(report: dict[str, Any]) -> None:
    """Raises NoRestorableCheckpoint if nothing can be restored, CheckFailed if a checkpoint or a copy is damaged."""
    damaged = _damaged(report["checkpoints"], "checkpoints")
    damaged += _damaged(report["copies"]["checkpoints"], "copies") if report["copies"] else []
    if report["restorable_step"] is None:
        raise NoRestorableCheckpoint(f"{report['run_dir']}: no checkpoint passes verification")
    if damaged:
        raise CheckFailed(f"{report['run_dir']}: {'; '.join(damaged)}")


def _damaged(entries: list[dict[str, Any]], what: str) -> list[str]:
    steps = [entry["step"] for entry in entries if not entry["restorable"]]
    return [f"damaged {what} of steps {steps}"] if steps else []


def _said(entry: dict[str, Any], before: str) -> list[str]:
    state = "intact" if entry["restorable"] else "DAMAGED"
    size = "" if entry["bytes"] is None else f", {entry['bytes']:,} bytes"
    stage = f" ({entry['stage']})" if entry["stage"] else ""
    return [f"{before}step {entry['step']}{stage}: {state}{size}", *(f"  {problem}" for problem in entry["problems"])]


def _examine(store: CheckpointStore, directory: pathlib.Path, step: int) -> dict[str, Any]:
    problems = store.verify(step)
    size = sum(path.stat().st_size for path in (directory / str(step)).rglob("*") if path.is_file())
    return {"step": step, "stage": _stage(store, step), "restorable": not problems, "problems": problems, "bytes": size}


def _stage(found: CheckpointStore | Copies, step: int) -> str | None:
    """The stage that a checkpoint or a copy belongs to; None: its run has no stages, or it cannot be read."""
    with contextlib.suppress(Damaged, NoRestorableCheckpoint):
        return redact(str(name)) if (name := found.meta(step).get("stage")) else None
    return None


def _examine_copies(copies: Copies) -> dict[str, Any]:
    found = []
    for step in copies.steps():
        problems, size = copies.problems(step), None
        with contextlib.suppress(Damaged):  # one of the problems
            size = copies.size(step)
        stage = _stage(copies, step)
        found.append({"step": step, "stage": stage, "restorable": not problems, "problems": problems, "bytes": size})
    return {"place": copies.place, "checkpoints": found, "unfinished": copies.unfinished()}


def _copies_of(run_dir: pathlib.Path) -> Copies | None:
    """Where the run's config keeps copies; None: it keeps none, or there is no config."""
    path = run_dir / "config.yaml"
    try:
        section = strict_yaml.read(path).data["checkpoint"]["copies"] if path.is_file() else None
    except (KeyError, TypeError):
        return None
    if section is None:
        return None
    try:
        return Copies(CopiesConfig.model_validate(section))
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: checkpoint.copies: {error.errors()[0]['msg']}") from None
