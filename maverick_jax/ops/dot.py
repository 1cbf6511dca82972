"""The matrix product that all operations here use: operands in the compute dtype, sums in float32."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from maverick_jax.target import traced_platform


def dot(x, y, x_axes, y_axes, batch=((), ()), out: PartitionSpec | None = None) -> jax.Array:
    """Contracts x and y over `x_axes` and `y_axes`; float32, axes ordered batch, rest of x, rest of y.

    `out` is the result's spec if the contracted axes are split over devices. The CPU has no product of bfloat16 with
    float32 sums, so the operands are widened first there, which gives the same numbers.
    """
    if traced_platform() == "cpu":
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    dims = ((tuple(x_axes), tuple(y_axes)), batch)
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32, out_sharding=out)
