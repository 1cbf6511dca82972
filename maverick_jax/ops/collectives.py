"""What several ops and objectives share about arrays that differ between devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import reshard

from maverick_jax.sharding import ShardingRules, axes_tuple


def vary(x, axes):
    """Marks a local array as differing between the devices of `axes`; the transpose sums the cotangents over them."""
    missing = tuple(a for a in axes if a not in jax.typeof(x).mat.varying)
    return lax.pcast(x, missing, to="varying") if missing else x


def vary_weight(w, axes):
    """`vary` for a weight: its gradients are summed over the devices in float32."""
    return vary(w.astype(jnp.float32), axes).astype(w.dtype)


def batch_sums(local: Callable[..., Any], *arrays: jax.Array, rules: ShardingRules) -> Any:
    """The tree of arrays that `local(*arrays)` gives, summed over devices: each calls it with its own sequences, whole,
    of `arrays` [B, T]. The result is the same on every device."""
    axes, whole = axes_tuple(rules.batch), rules.storage("batch", None)
    summed = lambda *arrays: jax.tree.map(lambda x: lax.psum(x, axes), local(*arrays))
    return jax.shard_map(summed, in_specs=whole, out_specs=rules.storage())(*(reshard(x, whole) for x in arrays))
