"""Gains and biases that many tokens share: their gradients are summed over the tokens in float32.

The results are those of x's dtype, to the bit: a float32 product or sum of two bfloat16 numbers is rounded once. A
bfloat16 sum over tokens stops growing after some hundred terms of one size.
"""

import jax
import jax.numpy as jnp


def scaled(x: jax.Array, gain: jax.Array) -> jax.Array:
    """x * gain in x's dtype; `gain` has as many axes as x, and is rounded to x's dtype first."""
    return (x.astype(jnp.float32) * _shared(gain, x.dtype)).astype(x.dtype)


def shifted(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x + bias in x's dtype; `bias` has as many axes as x, and is rounded to x's dtype first."""
    return (x.astype(jnp.float32) + _shared(bias, x.dtype)).astype(x.dtype)


def _shared(x: jax.Array, dtype) -> jax.Array:
    """The numbers of `x` rounded to `dtype`, as float32: the transpose of a broadcast then sums in float32."""
    return x.astype(dtype).astype(jnp.float32)
