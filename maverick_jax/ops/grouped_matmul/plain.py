"""The SwiGLU of a single expert: plain products of all rows."""

import jax
import jax.numpy as jnp

from maverick_jax.ops.kernels import Kernel
from maverick_jax.ops.linear import gated_linear, linear


def plain_swiglu(x, w_in, w_out, expert) -> jax.Array:
    """`grouped_swiglu` of one expert, w_in [1, D, 2, F] and w_out [1, F, D]."""
    x = jnp.where((expert == 0)[:, None], x, 0)[None]
    hidden = linear(x, w_in[0])
    return gated_linear(hidden[:, :, 0], hidden[:, :, 1], w_out[0])[0]


PLAIN = Kernel("plain", plain_swiglu)
