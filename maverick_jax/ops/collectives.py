"""Helpers for local functions inside `shard_map` whose arrays differ between devices."""

import jax
from jax import lax


def vary(x, axes):
    """Marks a local array as differing between the devices of `axes`; the transpose sums the cotangents over them."""
    missing = tuple(a for a in axes if a not in jax.typeof(x).mat.varying)
    return lax.pcast(x, missing, to="varying") if missing else x
