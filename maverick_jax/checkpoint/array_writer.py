"""Write the arrays of a checkpoint block by block, in any order and from several threads, without holding a whole one.

The result has the format of the store: Zarr arrays in one OCDBT database under `arrays/`, which Orbax restores. Orbax
writes its own records for arrays of one element; afterwards the shapes in these records are corrected.
"""

import dataclasses
import itertools
import json
import math
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from maverick_jax.checkpoint import contents
from maverick_jax.files import sync

BLOCK_BYTES = 16 * 2**20
CHUNK_BYTES = 8 * 2**20

_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}]
"""No compression: it saves a twelfth of a model's bytes and is three times as slow as the disk."""
_DATABASE = {
    # Each write rewrites the nodes above it. With the default size these are hundreds of times as large as a large
    # model's chunks need.
    "config": {"max_decoded_node_bytes": 2**18, "max_inline_value_bytes": 1024},
    "target_data_file_size": 8 * BLOCK_BYTES,
}


@dataclasses.dataclass(frozen=True)
class ArrayLayout:
    """How one array is cut into blocks, which are read and written whole, and blocks into stored chunks."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    """Axes from slowest to fastest in the source's memory order; a block is contiguous there."""
    block: tuple[int, ...]
    chunk: tuple[int, ...]

    @classmethod
    def of(cls, shape: Sequence[int], item_bytes: int, order: Sequence[int], split: Sequence[int]) -> "ArrayLayout":
        """`split`: the axes that meshes shard. Chunks are cut along them, so that a device reads little more than its
        own shard."""
        block = _block(shape, item_bytes, order)
        chunk, axes = list(block), itertools.cycle(split)
        while math.prod(chunk) * item_bytes > CHUNK_BYTES and any(chunk[axis] % 2 == 0 for axis in split):
            axis = next(axes)
            chunk[axis] //= 2 if chunk[axis] % 2 == 0 else 1
        return cls(tuple(shape), tuple(order), tuple(block), tuple(chunk))

    def blocks(self) -> Iterator[tuple[slice, ...]]:
        """All blocks in the source's order. Blocks at an edge may be smaller."""
        steps = [range(0, self.shape[axis], self.block[axis]) for axis in self.order]
        for at in itertools.product(*steps):
            first = dict(zip(self.order, at, strict=True))
            yield tuple(
                slice(first[a], min(first[a] + size, n))
                for a, (size, n) in enumerate(zip(self.block, self.shape, strict=True))
            )


def _block(shape: Sequence[int], item_bytes: int, order: Sequence[int]) -> list[int]:
    """Shape of a block: the slowest axes have one entry, and the next axis is divided evenly, if possible by a power
    of two."""
    block = list(shape)
    for axis in order:
        if (total := math.prod(block) * item_bytes) <= BLOCK_BYTES:
            break
        parts = min(math.ceil(total / BLOCK_BYTES), block[axis])
        even = [n for n in (2 ** (parts - 1).bit_length(), *range(parts, 2 * parts)) if block[axis] % n == 0]
        block[axis] = block[axis] // even[0] if even else math.ceil(block[axis] / parts)
    return block


class ArrayWriter:
    """Writes the database of one checkpoint. Arrays that already exist in it are opened unchanged."""

    def __init__(self, path: pathlib.Path):
        """`path`: folder of the checkpoint, which may be partly written."""
        self._path, self._flushed = path, set()
        # No cache, since every chunk is written once and whole. No sync at each of many small writes, so the files must
        # be flushed before the checkpoint is used.
        self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}, "file_io_sync": False})

    def open(self, name: str, layout: ArrayLayout, dtype: np.dtype) -> tensorstore.Future:
        """A future of the array `name`; write its blocks with `opened[block].write(values)`, which is a future too."""
        spec = {
            "driver": "zarr3",
            "kvstore": {
                "driver": "ocdbt",
                "base": f"file://{self._path / contents.ARRAYS}/",
                "path": f"{name}/",
                **_DATABASE,
            },
            "metadata": {
                "shape": layout.shape,
                "data_type": str(dtype),
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": layout.chunk}},
                "codecs": _CODECS,
            },
            "store_data_equal_to_fill_value": True,  # also store zeros, since an absent chunk counts as damage
            "open": True,
            "create": True,
        }
        return tensorstore.open(spec, context=self._context, write=True, read=True)

    def flush(self) -> None:
        """Wait until the values written so far are on disk. Call it from one thread at a time."""
        for path in (self._path / contents.ARRAYS / "d").iterdir():
            if path.suffix != ".__lock" and path not in self._flushed:  # .__lock: a file that is being written
                sync(path)
                self._flushed.add(path)

    def finish(self, sealed: dict[str, Any], layouts: Mapping[str, ArrayLayout], scratch: pathlib.Path) -> None:
        """Complete the checkpoint with Orbax's records of the arrays and the metadata `sealed`.

        `scratch`: path of a temporary folder, created and removed here. Can be repeated after an interruption.
        """
        shutil.rmtree(scratch, ignore_errors=True)
        ones = {name: jnp.ones([1] * len(layout.shape), jnp.int8) for name, layout in layouts.items()}
        with contents.context():
            ocp.save_checkpointables(str(scratch), {contents.ARRAYS: ones, contents.META: sealed})
        _correct_shapes(scratch / contents.ARRAYS, layouts)
        for made in (scratch / contents.ARRAYS).iterdir():
            if made.name == "d" or made.name.startswith(("manifest.", "ocdbt.")):  # the placeholder arrays' database
                shutil.rmtree(made) if made.is_dir() else made.unlink()
        shutil.copytree(scratch, self._path, dirs_exist_ok=True)
        shutil.rmtree(scratch)


def _correct_shapes(arrays: pathlib.Path, layouts: Mapping[str, ArrayLayout]) -> None:
    """Write the true block and chunk shapes into Orbax's records."""
    path = arrays / "_METADATA"
    tree = json.loads(path.read_text())
    for entry in tree["tree_metadata"].values():
        name = "/".join(key["key"] for key in entry["key_metadata"])
        entry["value_metadata"]["write_shape"] = layouts[name].block
    path.write_text(json.dumps(tree))
    (path,) = (arrays / "array_metadatas").iterdir()
    records = json.loads(path.read_text())
    for record in records["array_metadatas"]:
        layout = layouts[record["array_metadata"]["param_name"]]
        record["array_metadata"] |= {"write_shape": layout.block, "chunk_shape": layout.chunk}
    path.write_text(json.dumps(records))
