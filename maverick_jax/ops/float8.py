"""Operands of matrix products in float8, each with one scale that its largest element decides at the time.

An operand of the forward pass has 3 bits of mantissa (e4m3, up to 448), a cotangent 2 (e5m2, up to 57,344), as in
arXiv 2209.05433. The largest element is that of the whole array on all devices that share it, so results do not depend
on the mesh.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec, reshard

from maverick_jax.ops.dot import dot

OPERAND, COTANGENT = jnp.float8_e4m3fn, jnp.float8_e5m2


@dataclasses.dataclass(frozen=True)
class Scaled:
    """The array `values * scale`."""

    values: jax.Array
    """Of a float8 dtype."""
    scale: jax.Array
    """float32[]"""


jax.tree_util.register_dataclass(Scaled)


def scaled_to(x: jax.Array, dtype) -> Scaled:
    """x rounded to the nearest elements of the float8 `dtype`, with the largest of x at its largest. An x with an
    infinity or a NaN gives NaN in every product."""
    limit = float(jnp.finfo(dtype).max)
    largest = _largest(x)
    # of an array of zeros or of the smallest numbers, the quotient could be zero
    scale = jnp.where(largest > 0, jnp.maximum(largest / limit, jnp.finfo(jnp.float32).tiny), 1)
    scale = jnp.where(jnp.isfinite(largest), scale, jnp.nan)
    return Scaled(jnp.clip(x.astype(jnp.float32) / scale, -limit, limit).astype(dtype), scale)


def _largest(x: jax.Array) -> jax.Array:
    """The largest absolute value of x on all devices, float32[]."""
    kind = jax.typeof(x)
    if kind.sharding.spec.reduced:
        x = reshard(x, PartitionSpec(*kind.sharding.spec.partitions))
    found = jnp.max(jnp.abs(x)).astype(jnp.float32)
    varying = tuple(jax.typeof(found).mat.varying)
    return lax.pmax(found, varying) if varying else found


def scaled_dot(x: Scaled, y: Scaled, x_axes, y_axes, out: PartitionSpec | None = None) -> jax.Array:
    """`dot` of scaled operands. The product of their scales multiplies the float32 sums."""
    sums = dot(x.values, y.values, x_axes, y_axes, out=out)
    scale = x.scale * y.scale
    if out is not None and out.unreduced:
        scale = reshard(scale, PartitionSpec(reduced=out.unreduced))
    return sums * scale


def linear_of_rounded(x, w, dy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slow twin of `linear` with float8 operands, in NumPy: x [M, K] times w [K, N] -> [M, N], and for the
    cotangent dy [M, N] the gradients of x and w. Operands are rounded and scaled back, and everything is float32."""
    x, w = (_rounded(a, ml_dtypes.float8_e4m3fn, 448) for a in (x, w))
    dy = _rounded(dy, ml_dtypes.float8_e5m2, 57344)
    return x @ w, dy @ w.T, x.T @ dy


def _rounded(x, dtype, limit: float) -> np.ndarray:
    x = np.asarray(x, np.float32)
    scale = np.float32(np.abs(x).max() / np.float32(limit)) if np.any(x) else np.float32(1)
    return np.clip(x / scale, -limit, limit).astype(dtype).astype(np.float32) * scale
