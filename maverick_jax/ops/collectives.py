"""What several ops and objectives share about arrays that differ between devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, reshard

from maverick_jax.sharding import ShardingRules, axes_tuple, dimensions, spec_of


def vary(x, axes):
    """Marks a local array as differing between the devices of `axes`; the transpose sums the cotangents over them."""
    missing = tuple(a for a in axes if a not in jax.typeof(x).mat.varying)
    return lax.pcast(x, missing, to="varying") if missing else x


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
            w = lax.all_gather(w, found, axis=dimension, tiled=True)
    return w


def batch_sums(local: Callable[..., Any], *arrays: jax.Array, rules: ShardingRules) -> Any:
    """The tree of arrays that `local(*arrays)` gives, summed over devices: each calls it with its own sequences, whole,
    of `arrays` [B, T]. The result is the same on every device."""
    axes, whole = axes_tuple(rules.batch), rules.storage("batch", None)
    summed = lambda *arrays: jax.tree.map(lambda x: lax.psum(x, axes), local(*arrays))
    return jax.shard_map(summed, in_specs=whole, out_specs=rules.storage())(*(reshard(x, whole) for x in arrays))
