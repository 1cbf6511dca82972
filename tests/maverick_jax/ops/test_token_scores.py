"""Scores of given tokens equal those of whole logits, wherever the vocabulary is split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops.cross_entropy import cross_entropy
from maverick_jax.ops.token_scores import token_scores, token_scores_reference
from maverick_jax.sharding import ShardingRules

RULES = ShardingRules()


@pytest.mark.parametrize("mesh", [{"data": 1}, {"data": 2, "tensor": 4}], ids=str)
def test_scores_equal_the_twin_and_the_loss(mesh, mesh_of):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(4, 6, 16)), jnp.float32)
    head, tokens = (
        jnp.asarray(rng.normal(size=(16, 40)), jnp.float32),
        jnp.asarray(rng.integers(0, 40, (4, 6)), jnp.int32),
    )
    expected = token_scores_reference(hidden, head, tokens, 5)
    ones = jnp.ones((4, 6), jnp.float32)
    with mesh_of(**mesh):
        place = lambda x, *axes: jax.device_put(x, RULES(*axes))
        arrays = place(hidden, "batch", "length", None), place(head, None, "vocab"), place(tokens, "batch", "length")
        found = jax.jit(lambda x, head, ids: token_scores(x, head, ids, 5, rules=RULES, chunk=5))(*arrays)
        loss = jax.jit(lambda x, head, ids: cross_entropy(x, head, ids, ones, rules=RULES).per_token)(*arrays)
    np.testing.assert_array_equal(found.top_ids, expected.top_ids)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
    np.testing.assert_allclose(found.log_probs, -np.asarray(loss), atol=2e-6)
