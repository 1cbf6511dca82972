"""Attention to kept keys equals the dense twin, in blocks of keys and queries and in one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops.attention import MaskSpec, Segments, attention_to_kept, attention_to_kept_reference, kept


@pytest.mark.parametrize("sizes", [(64, 64), (16, 5), (7, 64)], ids=str)
@pytest.mark.parametrize("mask", [MaskSpec(), MaskSpec("chunked", 40), MaskSpec("sliding_window", 40)], ids=str)
def test_kept_keys_are_attended_to_as_the_twin_does(monkeypatch, mask, sizes):
    monkeypatch.setattr(kept, "KEY_BLOCK", sizes[0])
    monkeypatch.setattr(kept, "QUERY_BLOCK", sizes[1])
    rng = np.random.default_rng(0)
    B, T, S, N, K, H = 3, 12, 40, 4, 2, 8
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    q, k, v = array(B, T, N, H), array(B, K, S, H), array(B, K, S, H)
    first = jnp.array([[0], [26], [9]], jnp.int32) if mask.size is None else jnp.array([[0], [26], [97]], jnp.int32)
    index = jnp.arange(T, dtype=jnp.int32)[None, :]
    queries = Segments(first + index, jnp.broadcast_to((index < 10).astype(jnp.int32), (B, T)))
    last = first[:, 0] + 9
    found = jax.jit(lambda *args: attention_to_kept(*args[:3], mask, *args[3:]))(q, k, v, queries, last)
    expected = attention_to_kept_reference(q, k, v, mask, queries, last)
    np.testing.assert_allclose(found[:, :10], expected[:, :10], atol=2e-6)
    assert np.isfinite(found).all()


def test_a_text_of_which_nothing_is_kept_gives_finite_numbers():
    zeros = jnp.zeros((1, 1, 2, 4))
    queries = Segments(jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32))
    found = attention_to_kept(
        zeros, jnp.zeros((1, 2, 8, 4)), jnp.ones((1, 2, 8, 4)), MaskSpec(), queries, -jnp.ones(1, jnp.int32)
    )
    assert np.isfinite(found).all()
