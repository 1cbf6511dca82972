"""Stochastic rounding of float32 to bfloat16, for parameters that are stored in bfloat16.

An update of a parameter is often smaller than half the distance to the next bfloat16 number. Rounded to the nearest, it
is lost every time; rounded up or down at random, with probabilities by distance, it arrives on average (arXiv
2010.06192).
"""

import jax
import jax.numpy as jnp
from jax import lax


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """x float32 -> bfloat16: one of the two neighbors, whose expected value is x. Numbers that bfloat16 holds, and
    those that are not finite, stay as they are. Sharded as x; the numbers drawn do not depend on the sharding."""
    sharding = jax.typeof(x).sharding
    explicit = not sharding.mesh.empty and sharding.mesh.are_all_axes_explicit
    noise = jax.random.bits(key, x.shape, jnp.uint16, out_sharding=sharding.spec if explicit else None)
    bits = lax.bitcast_convert_type(x, jnp.uint32) + noise.astype(jnp.uint32)  # carries into the upper half by chance
    rounded = lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))
