"""The matrix product that all operations here use: operands in the compute dtype, sums in float32."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from maverick_jax.target import multiplies_bfloat16, traced_platform


def dot(x, y, x_axes, y_axes, batch=((), ()), out: PartitionSpec | None = None) -> jax.Array:
    """Contracts x and y over `x_axes` and `y_axes`; float32, axes ordered batch, rest of x, rest of y.

    `out` is the result's spec if the contracted axes are split over devices. A CPU widens float8 operands first, and
    bfloat16 ones unless it multiplies them natively, which gives the same numbers up to the order of sums.
    """
    if traced_platform() == "cpu":
        x, y = (a.astype(jnp.bfloat16) if a.dtype.itemsize == 1 else a for a in (x, y))
        if x.dtype == y.dtype == jnp.bfloat16 and multiplies_bfloat16():
            return _rows_first(x, y, tuple(x_axes), y_axes, batch, out)
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return _dot(x, y, x_axes, y_axes, batch, out)


def _dot(x, y, x_axes, y_axes, batch, out):
    dims = ((tuple(x_axes), tuple(y_axes)), batch)
    # by default, GPUs add up float8 products with fewer bits than float32 has
    precision = jax.lax.Precision.HIGHEST if x.dtype.itemsize == 1 else None
    return jax.lax.dot_general(x, y, dims, precision, preferred_element_type=jnp.float32, out_sharding=out)


def _rows_first(x, y, x_axes, y_axes, batch, out):
    """`dot` of bfloat16 operands, with the contracted axes of x last in memory.

    XLA's CPU compiler has bfloat16 kernels for that order alone. It would fold transposes of x or of the result into
    the product, which then fails when it runs ("Unsupported element type for DotThunk"): the barriers prevent that.
    """
    rest = tuple(axis for axis in range(x.ndim) if axis not in (*batch[0], *x_axes))
    x = jax.lax.optimization_barrier(x.transpose(*batch[0], *rest, *x_axes))
    batches, contracted = tuple(range(len(batch[0]))), range(x.ndim - len(x_axes), x.ndim)
    return jax.lax.optimization_barrier(_dot(x, y, contracted, y_axes, (batches, batch[1]), out))
