"""Checkpoints on disk: per step a flat dict of arrays and a JSON object, verified when they are read.

`<directory>/<step>/` is one checkpoint. Orbax writes it under another name and renames it when it is complete, so a
directory of that name that fails verification was damaged later: it is set aside as `<step>.corrupt-<n>`, and is never
mistaken for an interrupted save. (With Orbax's commit file, an emptied directory and an interrupted first save would
look the same.) The directory must be on a file system that all processes share.

A save is written in the background, then read back (`read_back.py`), then copied to the persistent tier if there is one
(`copies.py`). A restore takes the newest checkpoint of both that passes verification.

Every process of a job calls every method of a writable store, in the same order. Process 0 holds the lease on the
directory (`lease.py`) from the opening of the store until `close`, so that no other job writes to it; likewise that on
the place of copies.
"""

import logging
import pathlib
from collections.abc import Callable, Collection
from typing import Annotated, Any

import jax
from orbax.checkpoint import v1 as ocp
from pydantic import Field

from maverick_jax import events
from maverick_jax.checkpoint import contents, folder
from maverick_jax.checkpoint.checksum import checksums
from maverick_jax.checkpoint.contents import Damaged
from maverick_jax.checkpoint.copier import Copier
from maverick_jax.checkpoint.copies import Copies, CopiesConfig, too_old
from maverick_jax.checkpoint.folder import SaveFailed
from maverick_jax.checkpoint.lease import Lease, anywhere, take
from maverick_jax.checkpoint.read_back import Finishing
from maverick_jax.checkpoint.readers import StoredArray, open_checkpoint
from maverick_jax.errors import InputError, MaverickError, NoRestorableCheckpoint, RunInUse
from maverick_jax.settings.section import Section

log = logging.getLogger(__name__)

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
    read_back: bool = True
    """Reads each checkpoint back after it was written, in the background, until the next save begins. A damaged one is
    set aside; no older one is deleted before."""
    copies: CopiesConfig | None = None
    """A second, persistent place for checkpoints, so that the run directory may be on a fast local disk. null: none."""


class CheckpointStore:
    """The checkpoints of one run. With `read_only` the directory is not changed, so that a live run can be read."""

    def __init__(
        self, directory, config: CheckpointConfig | None = None, *, read_only: bool = False, kept: Collection[int] = ()
    ):
        """Create `directory`, take its lease and remove the remains of interrupted saves, unless `read_only`. The same
        for the place of copies. kept: steps whose checkpoints and copies are never deleted as too old.

        Raises InputError if the directory cannot be written, RunInUse if another job writes to it, StoreUnreachable if
        the place of copies does not answer.
        """
        self.directory = pathlib.Path(directory).absolute()
        self.config = config or CheckpointConfig()
        self._read_only, self._kept = read_only, frozenset(kept)
        self._pending: tuple[int, Finishing] | None = None
        self._lease: Lease | None = None
        self.copies = Copies(self.config.copies, self._kept) if self.config.copies is not None else None
        self._copier: Copier | None = None
        self._hurried = False
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
        folder.require_room(self._path(step), sum(array.nbytes for array in arrays.values()))
        items = {contents.ARRAYS: arrays, contents.META: sealed}
        try:
            with contents.context(timeout_seconds=self.config.timeout_seconds):
                response = ocp.save_checkpointables_async(str(self._path(step)), items)
        except (OSError, ValueError) as error:
            raise SaveFailed(f"checkpoint {self._path(step)} could not be written: {error}") from error
        copier = self._copier
        on_intact = (lambda: copier.offer(step)) if copier is not None else (lambda: None)
        finishing = Finishing(response, self._path(step), read=self.config.read_back, on_intact=on_intact)
        self._pending = (step, finishing)
        _being_saved.add(self._path(step))
        if wait:
            self.wait(read_back=True)

    def wait(self, *, read_back: bool = False) -> None:
        """Wait until the pending save is complete, then delete checkpoints that `keep` and `keep_every` do not cover.
        If it was found damaged, it is set aside instead, and nothing is deleted. read_back: wait until it is read back
        too; else the reading ends where it stands.

        Raises SaveFailed if that save failed, RunInUse if it did because another job has taken over the directory.
        """
        if self._pending is None:
            return
        (step, finishing), self._pending = self._pending, None
        try:
            finishing.saved()
        except jax.errors.JaxRuntimeError:
            raise  # another process has failed, which the entry point handles
        except Exception as error:
            if self._lease is not None:
                self._lease.require_held()
            raise SaveFailed(f"checkpoint {self._path(step)} could not be written: {error}") from error
        finally:
            _being_saved.discard(self._path(step))
            found = finishing.reading(whole=read_back)
        log.info("saved checkpoint %s", self._path(step))
        self.require_held()
        if anywhere(bool(found.problems)):
            problem = found.problems[0] if found.problems else "another process found damage"
            self._set_aside(step, problem)
        else:
            self._delete_old()

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, the newest first."""
        self.wait()
        self.require_held()
        if self.copies is not None:
            self._on_first(lambda copier: copier.forget_after(step))
        self._delete([later for later in reversed(self.agreed_steps()) if later > step])
        folder.barrier(f"checkpoints after {step} are deleted")

    def hurry(self) -> None:
        """The run was asked to stop: `close` does not wait for the pending save to be read back, and for its copy only
        as long as `copies.stop_seconds`."""
        self._hurried = True

    def close(self) -> None:
        """`wait`, copy the newest checkpoint if copies are kept, then give back the leases. A closed store can be read;
        a save opens it again. Raises CopyFailed if it could not be copied; it is saved then."""
        try:
            self.wait(read_back=not self._hurried)
            if self.copies is not None:
                seconds, newest = (
                    self.copies.config.stop_seconds if self._hurried else None,
                    max(self.steps(), default=None),
                )
                self._on_first(lambda copier: copier.finish(newest, seconds))
        finally:
            if self.copies is not None:
                self.copies.release()
                self._copier = None
            if self._lease is not None:
                self._lease.release()
                self._lease = None

    def require_held(self) -> None:
        """Raises RunInUse on process 0 if another job has taken over the directory. A store that was closed takes its
        lease again."""
        if jax.process_index() == 0:
            self._lease = self._lease or take(self.directory)
            self._lease.require_held()
            if self.copies is not None:
                self._copier = self._copier or Copier(self.copies, self._path)
                self._copier.require_held()

    # ---- reading -----------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending. The checkpoints are not verified."""
        return folder.steps_in(self.directory)

    def known_steps(self) -> list[int]:
        """Steps that have a checkpoint here or a copy in the persistent tier, ascending."""
        return sorted({*self.steps(), *(self.copies.steps() if self.copies is not None else ())})

    def agreed_steps(self, find: Callable[[], list[int]] | None = None) -> list[int]:
        """The `steps`, or what `find` returns instead, that process 0 finds, on all processes; a shared file system may
        show a rename to some of them later."""
        return folder.agreed(find or self.steps)

    def agreed_known_steps(self) -> list[int]:
        """The `known_steps` that process 0 finds, on all processes; of a read-only store its `steps`."""
        if self.copies is None or self._read_only:
            return self.agreed_steps()
        known: list[int] = []
        self._on_first(lambda copier: known.extend(self.known_steps()))
        return self.agreed_steps(lambda: known)

    def set_aside(self) -> list[str]:
        """Names of the directories of damaged checkpoints that were set aside."""
        return folder.set_aside_in(self.directory)

    def meta(self, step: int) -> dict:
        """The `meta` saved with `step`, plus the keys `step` and `arrays` (name -> {shape, dtype, checksum}); those of
        its copy if the directory does not have it.

        Raises InputError if there is no such step, NoRestorableCheckpoint if its metadata is damaged.
        """
        try:
            if self.copies is not None and step not in self.steps() and step in self.copies.steps():
                return self.copies.meta(step)
            self._require_exists(step)
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

    def restore(
        self, target: dict[str, jax.ShapeDtypeStruct], step: int | None = None, *, subset: bool = False, since: int = 0
    ):
        """`(step, arrays, meta)` of the newest checkpoint that passes verification, or of `step`; None if nothing was
        ever saved.

        target: name -> shape, dtype and concrete `NamedSharding`, on any mesh. `subset` allows the checkpoint to hold
        arrays that the target lacks. A checkpoint that fails verification is set aside, and the next older one is
        tried. since: None too if no checkpoint of this step or a later one passes.

        Raises NoRestorableCheckpoint if checkpoints exist but none passes, and InputError if `target` does not match
        the checkpoint or `step` does not exist.
        """
        self.wait()
        known = self.agreed_known_steps()
        if step is not None and step not in known:
            self._require_exists(step)
        candidates = [one for one in known if one >= since] if step is None else [step]
        for candidate in reversed(candidates):
            if (found := self._intact(candidate, target, subset)) is not None:
                log.info("restored checkpoint %s", self._path(candidate))
                return candidate, *found
        if since == 0 and (candidates or self.set_aside()):
            also = f" or {self.copies.place}" if self.copies is not None else ""
            raise NoRestorableCheckpoint(
                f"no checkpoint in {self.directory}{also} passes verification; `maverick doctor` shows the problems of "
                "each. To start over, choose another run.dir or move this directory away"
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
                self.require_held()
                folder.remove_remains(self.directory, _being_saved)
        except MaverickError as error:
            problem = error
        except OSError as error:
            problem = InputError(f"checkpoint directory {self.directory} cannot be written: {error}")
        if anywhere(problem is not None):
            raise problem or RunInUse(f"{self.directory} cannot be opened by process 0, which says why")

    def _intact(self, step: int, target, subset: bool) -> tuple[dict[str, jax.Array], dict] | None:
        """Arrays and metadata of `step` from the directory, else from its copy, which is fetched first; None if neither
        passes verification. What does not is set aside."""
        for fetch in (False, True):
            if fetch and not self._fetch(step):
                return None
            if not anywhere(self._path(step).is_dir()):
                continue
            try:
                return self._load(step, target, subset)
            except Damaged as damage:
                self._set_aside(step, str(damage))
        return None

    def _fetch(self, step: int) -> bool:
        """Brings the copy of `step` here. False if there is none, or if it is damaged."""
        if self.copies is None or self._read_only:
            return False
        copies, done = self.copies, False

        def fetch(_: Copier) -> None:
            nonlocal done
            try:
                if step in copies.steps():
                    copies.fetch(step, self._path(step))
                    done = True
            except Damaged as damage:
                log.error("the copy of step %d in %s is damaged; skipping it: %s", step, copies.place, damage)

        self._on_first(fetch)
        return anywhere(done)

    def _on_first(self, work: Callable[[Copier], Any]) -> None:
        """Runs `work` on process 0, with the lease on the place of copies. All processes raise what it raises."""
        problem: MaverickError | None = None
        if jax.process_index() == 0:
            try:
                self.require_held()
                assert self._copier is not None
                work(self._copier)
            except MaverickError as error:
                problem = error
        if anywhere(problem is not None):
            raise problem or RunInUse(f"{self.directory}: process 0 failed at the copies, and says why")

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
        aside = folder.name_aside(self._path(step))
        log.error("checkpoint %s fails verification; setting it aside as %s: %s", self._path(step), aside.name, problem)
        if jax.process_index() == 0:
            self._path(step).rename(aside)
            events.record("checkpoint_set_aside", step=step, name=aside.name, problem=problem[:500])
        folder.barrier(f"checkpoint {step} is set aside")

    def _delete_old(self) -> None:
        """Delete checkpoints beyond `keep`."""
        copied = () if self._copier is None else (self._copier.busy,)
        self._delete(too_old(self.steps(), self.config, {*self._kept, *copied}))

    def _delete(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            folder.delete(self.directory, steps)

    def _require_exists(self, step: int) -> None:
        if step not in (there := self.steps()):
            raise InputError(f"no checkpoint of step {step} in {self.directory}; existing steps: {there or 'none'}")

    def _require_same(self, step: int, sealed: dict) -> None:
        if self.meta(step)["arrays"] != sealed["arrays"]:
            raise InputError(f"{self._path(step)} already holds a checkpoint with other contents; nothing was saved")
        log.info("checkpoint %s is already saved", self._path(step))
