"""The names in a directory of checkpoints, and how they change. A checkpoint has its name only while it is whole."""

import logging
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils

from maverick_jax.checkpoint.copies import FETCHING
from maverick_jax.checkpoint.lease import anywhere
from maverick_jax.errors import MaverickError

log = logging.getLogger(__name__)

_TEMPORARY = re.compile(rf"\d+\.(orbax-checkpoint-tmp.*|deleting|{FETCHING})")
_SET_ASIDE = re.compile(r"\d+\.corrupt-\d+")


class SaveFailed(MaverickError):
    """A checkpoint could not be written. Earlier checkpoints are unchanged."""


def steps_in(directory: pathlib.Path) -> list[int]:
    """Steps with a complete checkpoint, ascending. The checkpoints are not verified."""
    names = [p.name for p in directory.iterdir() if p.is_dir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name)


def agreed(find: Callable[[], list[int]]) -> list[int]:
    """The steps that process 0 finds, on all processes of the job."""
    steps = find() if jax.process_index() == 0 else []
    if jax.process_count() == 1:
        return steps
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    mine = np.array((steps + [0] * count)[:count], np.int32)
    return [int(s) for s in multihost_utils.broadcast_one_to_all(mine)] if count else []


def barrier(name: str) -> None:
    """All processes of the job have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def set_aside_in(directory: pathlib.Path) -> list[str]:
    """Names of the directories of damaged checkpoints that were set aside."""
    names = [p.name for p in directory.iterdir()] if directory.is_dir() else []
    return sorted(name for name in names if _SET_ASIDE.fullmatch(name))


def name_aside(path: pathlib.Path) -> pathlib.Path:
    """Where the damaged checkpoint at `path` is set aside."""
    taken = {found.name for found in path.parent.iterdir()}
    n = next(n for n in range(1, len(taken) + 2) if f"{path.name}.corrupt-{n}" not in taken)
    return path.with_name(f"{path.name}.corrupt-{n}")


def remove_remains(directory: pathlib.Path, being_saved: Collection[pathlib.Path]) -> None:
    """Removes what interrupted processes left, except of the checkpoints `being_saved`. Raises OSError."""
    for path in directory.iterdir():
        saved = path.with_name(path.name.partition(".")[0])
        if _TEMPORARY.fullmatch(path.name) and saved not in being_saved:
            log.warning("removing %s, left by an interrupted process", path)
            shutil.rmtree(path)


def delete(directory: pathlib.Path, steps: Iterable[int]) -> None:
    """Deletes checkpoints. Each is renamed first, so that an interrupted deletion does not leave part of a checkpoint
    under its name."""
    for step in steps:
        doomed = (directory / str(step)).rename(directory / f"{step}.deleting")
        shutil.rmtree(doomed)
        log.info("deleted checkpoint %s", directory / str(step))


def require_room(path: pathlib.Path, needed: int) -> None:
    """Raises SaveFailed, on all processes of the job, unless the disk has room for the checkpoint at `path`."""
    free = shutil.disk_usage(path.parent).free
    if anywhere(free < needed):
        raise SaveFailed(
            f"checkpoint {path} needs {needed:,} bytes; the disk has {free:,} free. It was not begun, and nothing was "
            f"deleted to make room: the checkpoints of steps {steps_in(path.parent)} are as they were. Make room, or "
            "lower checkpoint.keep"
        )
