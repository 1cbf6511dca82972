"""Log-probabilities of labels equal those of whole logits, in value and gradient, on every kind of mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops.label_log_probs import label_log_probs, label_log_probs_reference
from tests.maverick_jax.ops.test_ops import RULES, check_close, random, value_and_gradients


@pytest.mark.parametrize(
    "sizes",
    [{"data": 1}, {"tensor": 4, "fsdp": 2}, {"data": 2, "expert": 2, "tensor": 2}, {"context": 2, "fsdp": 4}],
    ids=str,
)
@pytest.mark.parametrize("chunk", [7, 64])
def test_equals_whole_logits(sizes, chunk, mesh_of):
    B, T, D, V = 8, 12, 8, 24
    hidden, head = random(B, T, D), random(D, V, seed=1)
    labels = np.random.default_rng(2).integers(0, V, (B, T)).astype(np.int32)
    expected = value_and_gradients(lambda h, w: label_log_probs_reference(h, w, jnp.asarray(labels)), hidden, head)
    with mesh_of(**sizes):
        tokens = RULES("batch", "length")
        placed = jax.device_put(hidden, RULES("batch", "length", None)), jax.device_put(head, RULES("embed", "vocab"))
        at = jax.device_put(labels, tokens)
        got = value_and_gradients(lambda h, w: label_log_probs(h, w, at, rules=RULES, chunk=chunk), *placed)
        check_close(got, expected)


def test_a_token_without_cotangent_gets_no_gradient(mesh_of):
    hidden, head, labels = random(2, 6, 8), random(8, 24, seed=1), jnp.zeros((2, 6), jnp.int32)
    with mesh_of(data=1):
        placed = jax.device_put(hidden, RULES("batch", "length", None)), jax.device_put(head, RULES("embed", "vocab"))
        found = lambda h: jnp.sum(label_log_probs(h, placed[1], labels, rules=RULES)[:, :3])
        gradient = np.asarray(jax.jit(jax.grad(found))(placed[0]))
    assert np.abs(gradient[:, :3]).min() > 0
    assert (gradient[:, 3:] == 0).all()
