"""Copies of finished checkpoints in an object store or another folder: the persistent tier.

`<place>/<step>/` has the files of a checkpoint under their own names, and `copy.json`, written last: the sizes and
SHA-256 digests of the files and the checkpoint's metadata. A step without it is no copy, so a job that dies in the
middle of copying leaves none, and its objects are removed later. When a copy is deleted, `copy.json` goes first. The
place has a lease (`object_lease.py`).
"""

import contextlib
import hashlib
import json
import logging
import pathlib
import re
import shutil
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Protocol

import pydantic
from pydantic import AfterValidator, Field

from maverick_jax.checkpoint import contents, object_lease
from maverick_jax.checkpoint.contents import Damaged
from maverick_jax.checkpoint.object_store import MAX_OBJECT, ObjectStore, check_url, is_key
from maverick_jax.errors import InputError
from maverick_jax.files import no_links, sync
from maverick_jax.settings.section import Section

log = logging.getLogger(__name__)

RECORD = "copy.json"
FETCHING = "fetching"
_AT_ONCE = 4
"""Files that are copied at a time, each held in memory as a whole when it is sent."""
_PART = 64 * 2**20
_MAX_RECORD, _MAX_FILES = 64 * 2**20, 10**6
_STEP = re.compile(r"(0|[1-9][0-9]{0,18})/(.+)")


class CopiesConfig(Section):
    """Where copies of checkpoints are kept besides the run directory, and which."""

    to: Annotated[str, AfterValidator(check_url)]
    """`s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or a folder, of this run alone. Credentials come from the
    environment."""
    every: Annotated[int, Field(ge=1)] = 1
    """Least number of steps between two checkpoints that are copied. A run's last one is always copied."""
    keep: Annotated[int, Field(ge=1)] = 3
    """Number of newest copies to keep. A copy is deleted only after a newer one is complete."""
    keep_every: Annotated[int, Field(ge=1)] | None = None
    """Copies of steps that are multiples of this number are never deleted; null disables this."""
    stop_seconds: Annotated[float, Field(ge=0)] = 20.0
    """Longest time, in seconds, that a run which is asked to stop takes to copy its last checkpoint."""


class Keeping(Protocol):
    """What a config says about which of several checkpoints are kept."""

    keep: int
    keep_every: int | None


def too_old(steps: list[int], config: Keeping, kept: Collection[int]) -> list[int]:
    """Those of `steps`, ascending, that `config` does not keep and that are not among `kept`."""
    every = config.keep_every
    return [s for s in steps[: -config.keep] if not (every and s % every == 0) and s not in kept]


class _CopyRecord(pydantic.BaseModel):
    """`copy.json`."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    format: Annotated[int, Field(ge=1, le=1)]
    files: dict[str, tuple[Annotated[int, Field(ge=0)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]]
    """Size and digest by path in the checkpoint."""
    metadata: dict[str, Any]
    """The checkpoint's, sealed."""


class Copies:
    """The copies of one run's checkpoints. Only one process of a job may change them."""

    def __init__(self, config: CopiesConfig, kept: Collection[int] = ()):
        """kept: steps whose copies are never deleted as too old. Raises InputError for a place that cannot be. No
        request is sent."""
        self.config, self._kept = config, frozenset(kept)
        self._store = ObjectStore(config.to)
        self._lease: object_lease.ObjectLease | None = None

    @property
    def place(self) -> str:
        return self.config.to

    # ---- reading -----------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps with a complete copy, ascending. The copies are not verified."""
        return [step for step, names in self._found().items() if RECORD in names]

    def unfinished(self) -> list[int]:
        """Steps of which a copy was begun and not finished, or deleted in part."""
        return [step for step, names in self._found().items() if RECORD not in names]

    def meta(self, step: int) -> dict[str, Any]:
        """As `CheckpointStore.meta`. Raises Damaged if it cannot be read."""
        return contents.opened(self._record(step).metadata, step)

    def newest_metadata(self) -> dict[str, Any] | None:
        """The `meta` of the newest copy that can be read."""
        for step in reversed(self.steps()):
            with contextlib.suppress(Damaged):
                return self.meta(step)
        return None

    def size(self, step: int) -> int:
        """Bytes of the files of a copy. Raises Damaged if its record cannot be read."""
        return sum(size for size, _ in self._record(step).files.values())

    def problems(self, step: int) -> list[str]:
        """Problems of a copy, one message each; empty if every byte is as it was sent. Reads all of it."""
        try:
            record = self._record(step)
            contents.opened(record.metadata, step)
        except Damaged as damage:
            return [str(damage)]
        found = []
        for path, (size, digest) in record.files.items():
            try:
                self._read(f"{step}/{path}", size, digest, lambda part: None)
            except Damaged as damage:
                found.append(f"{path}: {damage}")
        return found

    def fetch(self, step: int, into: pathlib.Path) -> None:
        """Brings a copy to `into`, which appears when it is whole. Raises Damaged if the copy is, InputError if the
        disk has no room for it or cannot be written."""
        record = self._record(step)
        needed, free = sum(size for size, _ in record.files.values()), shutil.disk_usage(into.parent).free
        if needed > free:
            raise InputError(
                f"{self.place}: its copy of step {step} needs {needed:,} bytes; the disk of {into.parent} has {free:,} "
                "free. Nothing was changed; make room there, or choose another run.dir"
            )
        log.info("fetching checkpoint %d from %s: %s bytes", step, self.place, f"{needed:,}")
        aside = into.with_name(f"{step}.{FETCHING}")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda item: self._fetch_file(step, aside, *item), record.files.items()))
            sync(aside)
            aside.rename(into)
            sync(into.parent)
        except OSError as error:
            raise InputError(f"{into}: cannot be written: {error}") from error

    # ---- writing -----------------------------------------------------------------------------------------------

    def take_lease(self) -> None:
        """Takes the lease on the place, if this object has not. Raises RunInUse if another job has it."""
        self._lease = self._lease or object_lease.take(self._store)

    def require_held(self) -> None:
        """Raises RunInUse if another job has taken the place over."""
        self.take_lease()
        assert self._lease is not None
        self._lease.require_held()

    def release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    def put(self, step: int, path: pathlib.Path) -> int:
        """Copies the checkpoint at `path`. Returns the bytes of its files. A complete copy with the same contents
        stays as it is."""
        sealed = contents.read_sealed(path)
        self.require_held()
        names = self._found().get(step, set())
        if RECORD in names and self._is_same(step, sealed):
            return self.size(step)
        if names:
            self._delete(step)
        files = sorted(str(found.relative_to(path)) for found in path.rglob("*") if found.is_file())
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            entries = dict(pool.map(lambda name: (name, self._put_file(step, path, name)), files))
        self.require_held()
        record = {"format": 1, "files": entries, "metadata": sealed}
        self._store.write(f"{step}/{RECORD}", json.dumps(record).encode())
        return sum(size for size, _ in entries.values())

    def tidy(self) -> list[int]:
        """Deletes what `keep` and `keep_every` do not cover, and remains of copies that were not finished. Returns the
        steps of deleted copies."""
        found = self._found()
        complete = [step for step, names in found.items() if RECORD in names]
        old = too_old(complete, self.config, self._kept)
        self.require_held()
        for step in [*old, *(step for step in found if step not in complete)]:
            self._delete(step)
        return old

    def delete_after(self, step: int) -> None:
        """Deletes the copies of later steps, the newest first."""
        self.require_held()
        for later in reversed(self._found()):
            if later > step:
                self._delete(later)

    # ---- implementation ----------------------------------------------------------------------------------------

    def _found(self) -> dict[int, set[str]]:
        """Names of the objects of each step, by step, ascending."""
        found: dict[int, set[str]] = {}
        for key in self._store.listed():
            if match := _STEP.fullmatch(key):
                found.setdefault(int(match[1]), set()).add(match[2])
        return dict(sorted(found.items()))

    def _record(self, step: int) -> _CopyRecord:
        raw = self._store.read(f"{step}/{RECORD}")
        if raw is None:
            raise Damaged(f"{RECORD} is gone")
        if len(raw) > _MAX_RECORD:
            raise Damaged(f"{RECORD} has {len(raw)} bytes; expected at most {_MAX_RECORD}")
        try:
            record = _CopyRecord.model_validate_json(raw)
        except (pydantic.ValidationError, RecursionError) as error:
            raise Damaged(f"{RECORD} is malformed: {str(error).splitlines()[0]}") from None
        bad = next((name for name in record.files if not is_key(name)), None)
        if bad is not None or len(record.files) > _MAX_FILES:
            raise Damaged(f"{RECORD} names a file that no checkpoint has: {bad!r:.80}")
        return record

    def _is_same(self, step: int, sealed: dict[str, Any]) -> bool:
        try:
            return self._record(step).metadata == sealed
        except Damaged:
            return False

    def _put_file(self, step: int, folder: pathlib.Path, name: str) -> tuple[int, str]:
        if not is_key(name):
            raise InputError(f"{folder / name}: a file of this name cannot be copied to {self.place}")
        if (size := (folder / name).stat().st_size) > MAX_OBJECT:
            raise InputError(f"{folder / name}: {size:,} bytes; one object holds at most {MAX_OBJECT:,}")
        raw = (folder / name).read_bytes()
        self._store.write(f"{step}/{name}", raw)
        return len(raw), hashlib.sha256(raw).hexdigest()

    def _fetch_file(self, step: int, folder: pathlib.Path, name: str, entry: tuple[int, str]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb", opener=no_links) as file:
            try:
                self._read(f"{step}/{name}", *entry, file.write)
            except Damaged as damage:
                raise Damaged(f"{name}: {damage}") from None
        sync(path)

    def _read(self, key: str, size: int, digest: str, write: Any) -> None:
        """Hands the object to `write` in parts. Raises Damaged unless it has this size and digest."""
        whole, read = hashlib.sha256(), 0
        while read < size or not size:
            part = self._store.read(key, slice(read, min(read + _PART, size)) if size else None)
            if part is None:
                raise Damaged("is gone")
            whole.update(part)
            write(part)
            read += len(part)
            if not part or not size:
                break
        if read != size or whole.hexdigest() != digest:
            raise Damaged("differs from what was copied")

    def _delete(self, step: int) -> None:
        """The record first, so that what is left of an interrupted deletion is no copy."""
        self._store.delete(f"{step}/{RECORD}")
        self._store.delete_under(f"{step}/")
        log.info("deleted %s/%d", self.place, step)
