"""Read arrays in parts, directly onto their devices.

A parameter is read once, in blocks that are contiguous on disk. Each block is copied to every device whose shard
overlaps it, on any mesh. The host holds a few blocks at a time, never a whole shard.
"""

import concurrent.futures
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from maverick_jax.checkpoint.readers import Reader, order_of

BLOCK_BYTES = 64 * 2**20

Box = tuple[tuple[int, int], ...]
"""(first index, end index) along each axis."""
T = TypeVar("T")


def place(leaf: jax.ShapeDtypeStruct, reader: Reader) -> jax.Array:
    """The array that `leaf` describes (shape, dtype, sharding), read from `reader`. Every element is read once.

    If several processes share the array, each reads the shards of its own devices.
    """
    devices: dict[Box, list] = {}
    for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
        box = tuple(part.indices(n)[:2] for part, n in zip(index or (), leaf.shape, strict=True))
        devices.setdefault(box, []).append(device)
    hull = tuple((min(a for a, _ in axis), max(b for _, b in axis)) for axis in zip(*devices, strict=True))
    shards: dict = {}
    wanted = (b for b in _blocks(hull, order_of(reader), leaf.dtype.itemsize) if any(_meet(b, box) for box in devices))
    for block, part in ahead(wanted, lambda b: reader(tuple(slice(*span) for span in b), leaf.dtype)):
        for box in [box for box in devices if _meet(block, box)]:
            common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(block, box, strict=True))
            piece = part[tuple(slice(a - first, b - first) for (a, b), (first, _) in zip(common, block, strict=True))]
            for device in devices[box]:
                shards[device] = _with(shards.get(device), piece, common, box, device)
        jax.block_until_ready(list(shards.values()))  # otherwise blocks would pile up in the host's memory
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, list(shards.values()))


def ahead(items: Iterable[T], make: Callable[[T], np.ndarray]) -> Iterator[tuple[T, np.ndarray]]:
    """Yield each item with `make(item)`, computed in another thread while the previous one is being used."""
    with concurrent.futures.ThreadPoolExecutor(1, "read") as pool:
        coming = None
        for item in items:
            before, coming = coming, (item, pool.submit(make, item))
            if before:
                yield before[0], before[1].result()
        if coming:
            yield coming[0], coming[1].result()


def _with(shard: jax.Array | None, piece: np.ndarray, where: Box, box: Box, device) -> jax.Array:
    """A device's shard (covering `box`) with `piece` (covering `where`) written into it, in place."""
    placed = jax.device_put(piece, device)
    if where == box:
        return placed
    if shard is None:
        shard = jnp.zeros([b - a for a, b in box], piece.dtype, device=device)
    return _write(shard, placed, tuple(np.int32(a - first) for (a, _), (first, _) in zip(where, box, strict=True)))


@functools.partial(jax.jit, donate_argnums=0)
def _write(whole: jax.Array, part: jax.Array, start: tuple[jax.Array, ...]) -> jax.Array:
    return jax.lax.dynamic_update_slice(whole, part, start)


def _blocks(hull: Box, order: Sequence[int], item_bytes: int) -> Iterator[Box]:
    """Boxes of at most `BLOCK_BYTES` (or one element of the fastest axis) that cover `hull`: whole along the fastest
    axes, partial along one, single entries along the slower ones."""
    steps, inner = [1] * len(hull), item_bytes
    for axis in reversed(order):
        size = hull[axis][1] - hull[axis][0]
        steps[axis] = max(1, min(size, BLOCK_BYTES // inner))
        inner *= steps[axis]
        if steps[axis] < size:
            break
    starts = [range(*hull[axis], steps[axis]) for axis in order]
    for at in itertools.product(*starts):
        first = dict(zip(order, at, strict=True))
        yield tuple((first[axis], min(first[axis] + steps[axis], hull[axis][1])) for axis in range(len(hull)))


def _meet(one: Box, other: Box) -> bool:
    return all(max(a, c) < min(b, d) for (a, b), (c, d) in zip(one, other, strict=True))
