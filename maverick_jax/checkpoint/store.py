"""Checkpoints on disk: per step a flat dict of arrays and a JSON object, verified when they are read.

`<directory>/<step>/` is one checkpoint. Orbax writes it under another name and renames it when it is complete, so a
directory of that name that fails verification was damaged later: it is set aside as `<step>.corrupt-<n>`, and is never
mistaken for an interrupted save. (With Orbax's commit file, an emptied directory and an interrupted first save would
look the same.) The directory must be on a file system that all processes share.

Every process of a job calls every method of a writable store, in the same order. Process 0 holds the lease on the
directory (`lease.py`) from the opening of the store until `close`, so that no other job writes to it.
"""

import logging
import pathlib
import re
import shutil
from typing import Annotated

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp
from pydantic import Field

from maverick_jax.checkpoint import contents
from maverick_jax.checkpoint.checksum import checksums
from maverick_jax.checkpoint.contents import Damaged
from maverick_jax.checkpoint.lease import Lease, anywhere, take
from maverick_jax.checkpoint.readers import StoredArray, open_checkpoint
from maverick_jax.errors import InputError, MaverickError, NoRestorableCheckpoint, RunInUse
from maverick_jax.settings.section import Section

log = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"\d+\.(orbax-checkpoint-tmp.*|deleting)")
_SET_ASIDE = re.compile(r"\d+\.corrupt-\d+")
_being_saved: set[pathlib.Path] = set()
"""Checkpoints that stores of this process are writing."""


class CheckpointConfig(Section):
    """When the training state is saved and which checkpoints are kept."""

    every: Annotated[int, Field(ge=1)] = 500
    """Steps between saves. The last step is always saved."""
    keep: Annotated[int, Field(ge=1)] = 3
    """Number of newest checkpoints to keep. A checkpoint is deleted only after a newer one is complete."""
    keep_every: Annotated[int, Field(ge=1)] | None = None
    """Checkpoints of steps that are multiples of this number are never deleted; null disables this."""
    timeout_seconds: Annotated[int, Field(ge=1)] = 1200
    """Longest time, in seconds, that a save in the background may take."""


class SaveFailed(MaverickError):
    """A checkpoint could not be written. Earlier checkpoints are unchanged."""


class CheckpointStore:
    """The checkpoints of one run. With `read_only` the directory is not changed, so that a live run can be read."""

    def __init__(self, directory, config: CheckpointConfig | None = None, *, read_only: bool = False):
        """Create `directory`, take its lease and remove the remains of interrupted saves, unless `read_only`.

        Raises InputError if the directory cannot be written, RunInUse if another job writes to it.
        """
        self.directory = pathlib.Path(directory).absolute()
        self.config = config or CheckpointConfig()
        self._read_only = read_only
        self._pending: tuple[int, ocp.AsyncResponse] | None = None
        self._lease: Lease | None = None
        if not read_only:
            self._prepare_directory()

    # ---- writing -----------------------------------------------------------------------------------------------

    def save(self, step: int, arrays: dict[str, jax.Array], meta: dict, *, wait: bool = False) -> None:
        """Copy `arrays` to the host, then write them in the background; `arrays` may be donated on return.

        `meta` is JSON and may not use the keys `arrays` and `digest`. Raises SaveFailed if the previous save failed or
        the disk is too full, InputError if a checkpoint with other contents exists for this step, RunInUse if another
        job has taken over the directory.
        """
        self.wait()
        self.require_held()
        sealed = contents.seal(step, arrays, checksums(arrays), meta)
        if step in self.steps():
            self._require_same(step, sealed)
            return
        self._require_space(step, sum(array.nbytes for array in arrays.values()))
        items = {contents.ARRAYS: arrays, contents.META: sealed}
        try:
            with contents.context(timeout_seconds=self.config.timeout_seconds):
                response = ocp.save_checkpointables_async(str(self._path(step)), items)
        except (OSError, ValueError) as error:
            raise SaveFailed(f"checkpoint {self._path(step)} could not be written: {error}") from error
        self._pending = (step, response)
        _being_saved.add(self._path(step))
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until the pending save is complete, then delete checkpoints that `keep` and `keep_every` do not cover.

        Raises SaveFailed if that save failed, RunInUse if it did because another job has taken over the directory.
        """
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
        except jax.errors.JaxRuntimeError:
            raise  # another process has failed, which the entry point handles
        except Exception as error:
            if self._lease is not None:
                self._lease.require_held()
            raise SaveFailed(f"checkpoint {self._path(step)} could not be written: {error}") from error
        finally:
            _being_saved.discard(self._path(step))
        log.info("saved checkpoint %s", self._path(step))
        self.require_held()
        self._delete_old()

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, the newest first."""
        self.wait()
        self.require_held()
        self._delete([later for later in reversed(self.agreed_steps()) if later > step])
        _barrier(f"checkpoints after {step} are deleted")

    def close(self) -> None:
        """`wait`, then give back the lease on the directory. A closed store can be read; a save opens it again."""
        try:
            self.wait()
        finally:
            if self._lease is not None:
                self._lease.release()
                self._lease = None

    def require_held(self) -> None:
        """Raises RunInUse on process 0 if another job has taken over the directory. A store that was closed takes its
        lease again."""
        if jax.process_index() == 0:
            self._lease = self._lease or take(self.directory)
            self._lease.require_held()

    # ---- reading -----------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending. The checkpoints are not verified."""
        names = [p.name for p in self.directory.iterdir() if p.is_dir()] if self.directory.is_dir() else []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name)

    def agreed_steps(self) -> list[int]:
        """The `steps` that process 0 finds, on all processes; a shared file system may show a rename to some of them
        later."""
        steps = self.steps()
        if jax.process_count() == 1:
            return steps
        count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
        mine = np.array((steps + [0] * count)[:count], np.int32)
        return [int(s) for s in multihost_utils.broadcast_one_to_all(mine)] if count else []

    def set_aside(self) -> list[str]:
        """Names of the directories of damaged checkpoints that were set aside."""
        names = [p.name for p in self.directory.iterdir()] if self.directory.is_dir() else []
        return sorted(name for name in names if _SET_ASIDE.fullmatch(name))

    def meta(self, step: int) -> dict:
        """The `meta` saved with `step`, plus the keys `step` and `arrays` (name -> {shape, dtype, checksum}).

        Raises InputError if there is no such step, NoRestorableCheckpoint if its metadata is damaged.
        """
        self._require_exists(step)
        try:
            return contents.read_meta(self._path(step))
        except Damaged as damage:
            raise NoRestorableCheckpoint(f"checkpoint {self._path(step)}: {damage}") from damage

    def verify(self, step: int) -> list[str]:
        """Problems of the checkpoint of `step`, one message each; empty if it is intact. Needs no devices and little
        memory."""
        self._require_exists(step)
        return contents.problems(self._path(step))

    def require_undamaged(self, step: int, prefix: str) -> None:
        """Raises InputError unless the arrays of `step` whose names begin with `prefix` are intact. All processes of a
        job must call it; each reads a share of the arrays."""
        wanted = sorted(name for name in self.meta(step)["arrays"] if name.startswith(prefix))
        found = contents.problems(self._path(step), wanted[jax.process_index() :: jax.process_count()])
        if anywhere(bool(found)):
            problem = found[0] if found else "another process found damage"
            raise InputError(f"{self._path(step)}: {problem}; `maverick doctor` shows which checkpoints are intact")

    def restore(self, target: dict[str, jax.ShapeDtypeStruct], step: int | None = None, *, subset: bool = False):
        """`(step, arrays, meta)` of the newest checkpoint that passes verification, or of `step`; None if nothing was
        ever saved.

        target: name -> shape, dtype and concrete `NamedSharding`, on any mesh. `subset` allows the checkpoint to hold
        arrays that the target lacks. A checkpoint that fails verification is set aside, and the next older one is
        tried.

        Raises NoRestorableCheckpoint if checkpoints exist but none passes, and InputError if `target` does not match
        the checkpoint or `step` does not exist.
        """
        self.wait()
        if step is not None:
            self._require_exists(step)
        candidates = self.agreed_steps() if step is None else [step]
        for candidate in reversed(candidates):
            try:
                arrays, meta = self._load(candidate, target, subset)
            except Damaged as damage:
                self._set_aside(candidate, str(damage))
                continue
            log.info("restored checkpoint %s", self._path(candidate))
            return candidate, arrays, meta
        if candidates or self.set_aside():
            raise NoRestorableCheckpoint(
                f"no checkpoint in {self.directory} passes verification; `maverick doctor` shows the problems of each. "
                "To start over, choose another run.dir or move this directory away"
            )
        return None

    def readers(self, prefix: str, step: int | None = None) -> dict[str, StoredArray]:
        """Readers of the arrays of `step` (None: the newest) whose names begin with `prefix`, keyed by the rest of the
        name. They read in parts and need no devices; `readers.require_undamaged` verifies what was read.

        Raises InputError if there is no such step or an array cannot be opened, NoRestorableCheckpoint if the metadata
        of the step is damaged.
        """
        step = max(self.steps(), default=0) if step is None else step
        return open_checkpoint(self._path(step), self.meta(step)["arrays"], prefix)

    # ---- implementation ----------------------------------------------------------------------------------------

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / str(step)

    def _prepare_directory(self) -> None:
        problem: MaverickError | None = None
        try:
            if jax.process_index() == 0:
                self._lease = take(self.directory)
                for path in self.directory.iterdir():
                    saved = self._path(0).with_name(path.name.partition(".")[0])
                    if _TEMPORARY.fullmatch(path.name) and saved not in _being_saved:
                        log.warning("removing %s, left by an interrupted process", path)
                        shutil.rmtree(path)
        except MaverickError as error:
            problem = error
        except OSError as error:
            problem = InputError(f"checkpoint directory {self.directory} cannot be written: {error}")
        if anywhere(problem is not None):
            raise problem or RunInUse(f"{self.directory} cannot be opened by process 0, which says why")

    def _load(self, step: int, target, subset: bool) -> tuple[dict[str, jax.Array], dict]:
        """Arrays and metadata of `step`. Raises Damaged, on all processes, unless all arrays of `target` are intact."""
        arrays, meta, problem = {}, {}, None
        try:
            meta = contents.read_meta(self._path(step))
            contents.require_fits(self._path(step), meta["arrays"], target, subset)
            contents.require_readable(self._path(step), {name: meta["arrays"][name] for name in target})
            arrays = contents.read_arrays(self._path(step), target)
        except Damaged as damage:
            problem = str(damage)
        if anywhere(problem is not None):
            raise Damaged(problem or "another process could not read its part")
        found = checksums(arrays)
        wrong = [name for name in arrays if found[name] != meta["arrays"][name]["checksum"]]
        if wrong:
            raise Damaged(f"{len(wrong)} array(s) differ from what was saved: {', '.join(wrong[:5])}")
        return arrays, meta

    def _set_aside(self, step: int, problem: str) -> None:
        if self._read_only:
            log.error("checkpoint %s fails verification; skipping it: %s", self._path(step), problem)
            return
        taken = [p.name for p in self.directory.iterdir()]
        n = next(n for n in range(1, len(taken) + 2) if f"{step}.corrupt-{n}" not in taken)
        aside = self.directory / f"{step}.corrupt-{n}"
        log.error("checkpoint %s fails verification; setting it aside as %s: %s", self._path(step), aside.name, problem)
        if jax.process_index() == 0:
            self._path(step).rename(aside)
        _barrier(f"checkpoint {step} is set aside")

    def _delete_old(self) -> None:
        """Delete checkpoints beyond `keep`."""
        every, steps = self.config.keep_every, self.steps()
        old = [s for s in steps[: -self.config.keep] if not (every and s % every == 0)]
        self._delete(old)

    def _delete(self, steps: list[int]) -> None:
        """Each is renamed first, so that an interrupted deletion does not leave part of a checkpoint under its name."""
        for step in steps if jax.process_index() == 0 else []:
            doomed = self._path(step).rename(self.directory / f"{step}.deleting")
            shutil.rmtree(doomed)
            log.info("deleted checkpoint %s", self._path(step))

    def _require_exists(self, step: int) -> None:
        if step not in self.steps():
            existing = self.steps() or "none"
            raise InputError(f"no checkpoint of step {step} in {self.directory}; existing steps: {existing}")

    def _require_same(self, step: int, sealed: dict) -> None:
        if self.meta(step)["arrays"] != sealed["arrays"]:
            raise InputError(f"{self._path(step)} already holds a checkpoint with other contents; nothing was saved")
        log.info("checkpoint %s is already saved", self._path(step))

    def _require_space(self, step: int, needed: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if anywhere(free < needed):
            raise SaveFailed(
                f"checkpoint {self._path(step)} needs {needed / 1e9:.3f} GB; the disk has {free / 1e9:.3f} GB free. "
                "Make room, or lower checkpoint.keep"
            )


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
