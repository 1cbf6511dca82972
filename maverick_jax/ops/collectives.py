"""What several ops and objectives share about arrays that differ between devices."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, reshard

from maverick_jax.ops.row_split import whole_rows
from maverick_jax.sharding import ShardingRules, axes_tuple, dimensions, spec_of

STAGE = 8
"""Most devices that one reduce-scatter adds up. A ring adds one device after the other and rounds each time: in
bfloat16, one ring over 512 devices is off by 3 to 26%, stages of eight by less than 0.7% (docs/results/precision.md).
They send the same bytes, and the first stage, which sends most, stays among neighbors."""


def vary(x, axes):
    """Marks a local array as differing between the devices of `axes`; the transpose sums the cotangents over them."""
    kind = jax.typeof(x).mat
    missing = [axis for axis in axes if axis not in kind.varying]
    for alike in ([a for a in missing if a in kind.reduced], [a for a in missing if a not in kind.reduced]):
        x = lax.pcast(x, tuple(alike), to="varying") if alike else x
    return x


def unchecked() -> contextlib.AbstractContextManager[None]:
    """Inside, a program may call a kernel that does not say between which devices its results differ. They must be
    marked by `vary` before they are used, or one device's would be taken for all."""
    from jax._src import config

    return config._check_vma(False)


def vary_weight(w, axes):
    """`vary` for a weight: its gradients are summed over the devices in float32."""
    return vary(w.astype(jnp.float32), axes).astype(w.dtype)


def use_sharded(w, use: PartitionSpec, axes: tuple[str, ...]):
    """Prepares w for `gather_weight`: w sharded as stored, where devices of `axes` share its storage, and as `use` says
    elsewhere. Returns it and the mesh axes to gather, by dimension."""
    mesh = jax.sharding.get_abstract_mesh()
    stored, used = dimensions(jax.typeof(w).sharding.spec, w.ndim), dimensions(use, w.ndim)
    shared = lambda axis, own: axis in axes and axis not in own and mesh.shape[axis] > 1
    gathered = [tuple(axis for axis in a if shared(axis, b)) for a, b in zip(stored, used, strict=True)]
    return reshard(w, spec_of([a + b for a, b in zip(used, gathered, strict=True)])), gathered


def gather_weight(w, dtype, gathered: Sequence[tuple[str, ...]], axes):
    """Inside `shard_map`: gathers in `dtype` a weight that `use_sharded` prepared, and marks it as differing between
    the devices of `axes`. Its gradient is scattered in `dtype` over the gathered axes and then summed in float32 over
    the others."""
    w = vary_weight(w, [axis for axis in axes if not any(axis in found for found in gathered)]).astype(dtype)
    for dimension, found in enumerate(gathered):
        if found:
            w = _all_gather(found, dimension, w)
    return w


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _all_gather(axes, dimension, x):
    """`lax.all_gather`, tiled, whose gradient is a `reduce_scatter`."""
    return lax.all_gather(x, axes, axis=dimension, tiled=True)


_all_gather.defvjp(
    # not by calling itself: policies of remat would save the call's result, a gathered weight for every layer
    lambda axes, dimension, x: (lax.all_gather(x, axes, axis=dimension, tiled=True), None),
    lambda axes, dimension, _, dy: (reduce_scatter(dy, axes, dimension),),
)


def reduce_scatter(x, axes: Sequence[str], dimension: int, *, stage: int = STAGE):
    """Inside `shard_map`: each device's block of `dimension` of the sum of x over the devices of `axes`, in x's dtype.
    Of more than `stage` devices, it adds neighbors first and then their sums, at most `stage` at a time."""
    sizes = [lax.axis_size(axis) for axis in axes]
    if math.prod(sizes) <= stage:
        return lax.psum_scatter(x, tuple(axes), scatter_dimension=dimension, tiled=True)
    steps = [(axis, size, *of) for axis, size in zip(axes, sizes, strict=True) for of in stages(size, stage)]
    ways = [ways for *_, ways, _ in steps]
    blocks = (*ways, x.shape[dimension] // math.prod(ways))
    x = x.reshape(*x.shape[:dimension], *blocks, *x.shape[dimension + 1 :])
    for place, (axis, size, ways, apart) in reversed([*enumerate(steps, dimension)]):
        firsts = [i for i in range(size) if i // apart % ways == 0]
        groups = [[first + apart * k for k in range(ways)] for first in firsts]
        x = lax.psum_scatter(x, axis, scatter_dimension=place, axis_index_groups=groups)
    return x


def stages(size: int, most: int = STAGE) -> list[tuple[int, int]]:
    """How an axis of `size` devices is added up: (devices of a group, their distance) for each stage. The last stage
    comes first; it adds neighbors. A factor of `size` that has no divisor up to `most` is one stage."""
    found, apart = [], 1
    while apart < size:
        left = size // apart
        ways = next((n for n in range(min(most, left), 1, -1) if left % n == 0), left)
        found.insert(0, (ways, apart))
        apart *= ways
    return found


def batch_sums(local: Callable[..., Any], *arrays: jax.Array, rules: ShardingRules) -> Any:
    """The tree of arrays that `local(*arrays)` gives, summed over devices: each calls it with its own sequences, whole
    and in the order of rows, of `arrays` [B, T], which `RowSplit` divides. The result is the same on every device."""
    axes = axes_tuple(rules.batch)
    summed = lambda *arrays: jax.tree.map(lambda x: lax.psum(x, axes), local(*arrays))
    whole = [whole_rows(x, rules) for x in arrays]
    return jax.shard_map(summed, in_specs=rules.storage("batch", None), out_specs=rules.storage())(*whole)
