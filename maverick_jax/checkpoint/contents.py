"""Read and check the contents of one checkpoint: `meta/` (JSON) and `arrays/` (Zarr in one OCDBT database), by Orbax.

`meta` holds the caller's keys, `step`, `arrays` (name -> shape, dtype, checksum) and `digest`, a SHA-256 of the other
keys, so that a flipped bit in the JSON is detected too.
"""

import contextlib
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from maverick_jax.checkpoint.checksum import checksum_of_blocks, require_supported
from maverick_jax.errors import InputError
from maverick_jax.settings.moved_keys import with_new_keys

ARRAYS, META = "arrays", "meta"
MOVED = {
    "optimizer.train": "trainable.parameters",
    "optimizer.experts": "trainable.experts",
    "optimizer.lora": "adapters",
}
"""Metadata keys of earlier versions, and their names today."""
_MAX_META_BYTES = 64 * 2**20
_OURS = ("arrays", "digest")
_BLOCK_BYTES = 256 * 2**20
_CHUNK_BYTES, _LEAST_ROW_BYTES = 16 * 2**20, 2**20
_FILE_BYTES = 128 * 2**20
"""Size of a file of arrays, about: object stores take a file as one object, and copying holds some in memory."""
MAX_CHUNK_BYTES, MAX_RECORD_BYTES = 2**30, 2**20
# Errors that damage raises. Other OSErrors and RuntimeErrors (a disk that does not respond, missing permissions, a full
# device) are not damage, and a checkpoint must not be set aside because of them.
_UNREADABLE = (ValueError, KeyError, TypeError, FileNotFoundError, NotADirectoryError)
_NOT_DAMAGE = ("PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED")


class Damaged(Exception):
    """A checkpoint differs from what was saved."""


def seal(
    step: int, arrays: Mapping[str, jax.Array | jax.ShapeDtypeStruct], checksums: dict[str, str], meta: dict
) -> dict:
    """The JSON object stored with `arrays`, with its digest. Raises InputError for an array that cannot be stored."""
    taken = [key for key in _OURS if key in meta]
    if taken or meta.get("step", step) != step:
        raise ValueError(f"meta uses keys reserved by the store: {taken or 'step'}")
    table = {}
    for name, array in arrays.items():
        if not array.size:
            raise InputError(f"array {name!r} of shape {array.shape} has no elements and cannot be stored")
        table[name] = {"shape": list(array.shape), "dtype": str(array.dtype), "checksum": checksums[name]}
    sealed = json.loads(json.dumps({**meta, "step": step, "arrays": table}))
    return {**sealed, "digest": _digest(sealed)}


def read_meta(path: pathlib.Path) -> dict:
    """The JSON object of the checkpoint at `path`, without its digest and with today's keys. Raises Damaged if it is
    malformed or altered."""
    return with_new_keys(_checked(_load(path, {META: None})[META], path.name), MOVED)


def read_sealed(path: pathlib.Path) -> dict:
    """As `read_meta`, as it was saved, with its digest, and without Orbax: see `problems`."""
    try:
        with (path / META / "data.json").open("rb") as file:
            raw = file.read(_MAX_META_BYTES + 1)
        sealed = json.loads(raw)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError) as error:
        raise Damaged(f"cannot be read: {_root(error)}") from error
    _checked(dict(sealed) if isinstance(sealed, dict) else sealed, path.name)
    return sealed


def opened(sealed: Any, step: int) -> dict:
    """What `read_meta` returns for a checkpoint with these sealed metadata. Raises Damaged if they are malformed or
    altered."""
    return with_new_keys(_checked(dict(sealed) if isinstance(sealed, dict) else sealed, str(step)), MOVED)


def _checked(meta: Any, step: str) -> dict:
    if not isinstance(meta, dict) or not isinstance(meta.get("arrays"), dict):
        raise Damaged("its metadata is malformed")
    digest = meta.pop("digest", None)
    if digest != _digest(meta):
        raise Damaged("its metadata differs from what was saved")
    if wrong := [name for name, entry in meta["arrays"].items() if not _is_entry(entry)]:
        raise Damaged(f"its metadata is malformed: arrays: {wrong[0]!r:.80}")
    if str(meta.get("step")) != step:
        raise Damaged(f"it was saved as step {meta.get('step')!r:.80}")
    return meta


def _is_entry(entry: Any) -> bool:
    """Whether an entry is well-formed. The digest detects only accidents: anyone can compute it."""
    if not isinstance(entry, dict) or entry.keys() != {"shape", "dtype", "checksum"}:
        return False
    shape = entry["shape"]
    well_shaped = isinstance(shape, list) and all(type(size) is int and 0 < size < 2**62 for size in shape)
    return well_shaped and isinstance(entry["dtype"], str) and isinstance(entry["checksum"], str)


def read_arrays(path: pathlib.Path, target: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The arrays named in `target`, with its shardings; their values are not verified. Raises Damaged if unreadable."""
    arrays = _load(path, {ARRAYS: dict(target)})[ARRAYS]
    # For an array that its records omit, Orbax returns the target unchanged.
    if left := [name for name in target if not isinstance(arrays.get(name), jax.Array)]:
        raise Damaged(f"its records omit {len(left)} array(s): {', '.join(left[:5])}")
    return arrays


def require_fits(path: pathlib.Path, stored: dict[str, dict], target: dict, subset: bool) -> None:
    """Raises InputError with a line per array whose name, shape or dtype differs between checkpoint and `target`;
    `subset` allows arrays that `target` lacks."""
    lines = []
    for name in sorted({*target, *(() if subset else stored)}):
        have = f"{stored[name]['dtype']}{stored[name]['shape']}" if name in stored else "absent"
        want = f"{target[name].dtype}{list(target[name].shape)}" if name in target else "absent"
        if have != want:
            lines.append(f"  {name}: the checkpoint has {have}, the run expects {want}")
    if lines:
        more = [f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise InputError("\n".join([f"checkpoint {path} does not match this run:", *lines[:20], *more]))


def require_readable(path: pathlib.Path, table: dict[str, dict]) -> None:
    """Raises Damaged unless each array has the shape and dtype in `table` and chunks that fit memory, which Orbax does
    not check."""
    cache = tensorstore.Context()
    for name, entry in table.items():
        open_array(path, name, entry, cache)


def problems(
    path: pathlib.Path,
    wanted: Collection[str] | None = None,
    on_block: Callable[[int], None] = lambda size: None,
    *,
    orbax: bool = True,
) -> list[str]:
    """Every problem of the checkpoint at `path` (only of the arrays `wanted`, if given), one message each. Reads the
    arrays in blocks, on the host. on_block: called with the bytes of each block that was read; what it raises ends
    the reading. orbax: whether its own records are read through it too. It numbers its operations, and its barriers by
    them, so a process of several must not use it alone while the others may save."""
    try:
        table = (read_meta(path) if orbax else read_sealed(path))["arrays"]
    except Damaged as damage:
        return [str(damage)]
    table = table if wanted is None else {name: table[name] for name in wanted}
    found = [
        f"{name}: {problem}" for name, entry in table.items() if (problem := _problem(path, name, entry, on_block))
    ]
    return found or (_problems_of_index(path, table) if orbax else [])


def context(*, timeout_seconds: int = 1200) -> ocp.Context:
    """Orbax's settings for reading and writing."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=META)
    made = ocp.Context()
    made.checkpointables.registry = registry
    made.atomicity.mode = ocp.options.AtomicityMode.ATOMIC_RENAME
    made.asynchronous.timeout_secs = timeout_seconds
    # A directory that cannot be created then raises in save(), not in a thread.
    made.asynchronous.create_directories_asynchronously = False
    # zstd takes three times as long as the disk and saves a twelfth of the bytes of trained weights.
    made.array.saving.use_compression = False
    made.array.saving.ocdbt_target_data_file_size = _FILE_BYTES
    made.array.saving.scoped_storage_options_creator = _chunks
    return made


def _chunks(key, value):
    """How an array is cut into chunks, so that parts of it (a layer, an expert) can be read with little memory.

    A chunk has at most `_CHUNK_BYTES`. Leading axes are cut to single entries while an entry has `_LEAST_ROW_BYTES`.
    """
    options = ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=_CHUNK_BYTES)
    shape = value.sharding.shard_shape(value.shape) if isinstance(value, jax.Array) else np.shape(value)
    rows = [math.prod(shape[axis + 1 :]) * value.dtype.itemsize for axis in range(len(shape))]
    if rows and rows[0] * shape[0] > _CHUNK_BYTES:
        options.shard_axes = tuple(axis for axis, size in enumerate(rows) if size >= _LEAST_ROW_BYTES)
    return options


def _load(path: pathlib.Path, items: dict) -> dict:
    reading = context()
    reading.pytree.loading.partial_load = True
    if jax.process_count() > 1:
        # If one process finds damage, Orbax's barriers would block the others for minutes; the store synchronizes them.
        reading.multiprocessing.active_processes = {jax.process_index()}
        reading.multiprocessing.primary_host = jax.process_index()
        reading.multiprocessing.barrier_sync_key_prefix = f"process_{jax.process_index()}"
    with reading, named_damage():
        return ocp.load_checkpointables(str(path), items)


@contextlib.contextmanager
def named_damage() -> Iterator[None]:
    """Turns the errors that TensorStore and Orbax raise for damaged files inside the block into Damaged."""
    try:
        yield
    except _UNREADABLE as error:
        if _root(error).startswith(_NOT_DAMAGE):
            raise
        raise Damaged(f"cannot be read: {_root(error)}") from error


def _root(error: BaseException) -> str:
    """The message of the first cause; the messages that Orbax wraps around it are about handlers."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = str(error).split("[tensorstore_spec")[0].split("[source locations")[0].strip()
    return text[:300] or type(error).__name__


def _problems_of_index(path: pathlib.Path, table: dict[str, dict]) -> list[str]:
    """Problems of Orbax's records, found by loading the smallest array through Orbax; the arrays themselves can be read
    without these records."""
    if not table:
        return []
    name = min(table, key=lambda n: math.prod(table[n]["shape"]))
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.ShapeDtypeStruct(table[name]["shape"], table[name]["dtype"], sharding=one_device)
    try:
        read_arrays(path, {name: like})
    except Damaged as damage:
        return [str(damage)]
    return []


def _problem(path: pathlib.Path, name: str, entry: dict, on_block: Callable[[int], None]) -> str | None:
    try:
        require_supported(name, entry["dtype"])
        store = open_array(path, name, entry)
        with named_damage():
            found = checksum_of_blocks(_blocks(store, np.dtype(store.dtype.numpy_dtype), on_block))
    except (Damaged, InputError) as problem:
        return str(problem)
    except _UNREADABLE as error:
        return f"cannot be read: {_root(error)}"
    return None if found == entry["checksum"] else "differs from what was saved"


def open_array(path: pathlib.Path, name: str, entry: dict, cache: tensorstore.Context | None = None):
    """Array `name` of the checkpoint at `path` as a TensorStore, to be read in parts; its values are not verified.

    `entry`: the array's metadata. Raises Damaged if the stored shape or dtype differs from it.
    """
    database = {"driver": "ocdbt", "base": f"file://{path / ARRAYS}/", "path": f"{name}/"}
    spec = {"driver": "zarr3", "kvstore": database, "open": True, "recheck_cached_data": "open"}
    with named_damage():
        record = tensorstore.KvStore.open(database, context=cache).result().read("zarr.json").result()
        _require_shallow(record.value)
        store = tensorstore.open(spec, context=cache).result()
    dtype = np.dtype(store.dtype.numpy_dtype)
    if list(store.shape) != entry["shape"] or str(dtype) != entry["dtype"]:
        raise Damaged(f"is {dtype}{list(store.shape)}; expected {entry['dtype']}{entry['shape']}")
    # A chunk is read whole, and TensorStore ends the process if it cannot allocate it.
    chunk = [int(n) for n in store.chunk_layout.read_chunk.shape or ()]
    if (size := math.prod(chunk) * dtype.itemsize) > MAX_CHUNK_BYTES:
        raise Damaged(f"is stored in chunks of {size} bytes; expected at most {MAX_CHUNK_BYTES}")
    return store


def _require_shallow(record: bytes) -> None:
    """Raises ValueError for JSON on which TensorStore would end the process, since it does not limit nesting."""
    if len(record) > MAX_RECORD_BYTES:
        raise ValueError(f"its record has {len(record)} bytes; expected at most {MAX_RECORD_BYTES}")
    try:
        json.loads(record or b"null")
    except RecursionError:
        raise ValueError("its record is nested too deeply") from None


def _blocks(store, dtype: np.dtype, on_block: Callable[[int], None]):
    """(index of its first element, values) of each block: at most `_BLOCK_BYTES`, or one chunk if chunks are larger."""
    block = list(store.chunk_layout.read_chunk.shape or ())
    for axis in reversed(range(len(block))):
        room = _BLOCK_BYTES // (math.prod(block) * dtype.itemsize)
        block[axis] = min(store.shape[axis], block[axis] * max(1, room))
    for start in itertools.product(*[range(0, size, step) for size, step in zip(store.shape, block, strict=True)]):
        stop = [min(first + step, size) for first, step, size in zip(start, block, store.shape, strict=True)]
        values = store[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))].read().result()
        on_block(values.nbytes)
        yield start, values


def _digest(meta: dict) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
