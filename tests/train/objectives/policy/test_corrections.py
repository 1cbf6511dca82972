"""Importance weights of tokens, on one row of two episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.sharding import single_device_mesh
from train.objectives.policy.corrections import Correction

LOG = np.log(np.array([[1.0, 4.0, 0.25, 1.0, 8.0, 2.0, 1.0, 1.0]], np.float32))
MASK = np.array([[0, 1, 1, 0, 1, 1, 0, 0]], np.float32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0, 0]], np.int32)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("truncate", [1, 2, 0.25, 1, 2, 2, 1, 1]),
        ("mask_tokens", [1, 0, 0, 1, 0, 2, 1, 1]),
        # the first episode's mean is sqrt(4 * 0.25) = 1, the second's sqrt(8 * 2) = 4
        ("mask_episodes", [1, 2, 0.25, 0, 0, 0, 0, 0]),
    ],
)
def test_weights_are_those_of_a_hand_made_row(kind, expected):
    correction = Correction(kind=kind, most=2.0, least=0.5)
    with jax.set_mesh(single_device_mesh()):
        weights = jax.jit(lambda log: correction.weights(log, jnp.asarray(MASK), jnp.asarray(SEGMENTS)))
        found = np.asarray(weights(jnp.asarray(LOG)))[0]
        slope = jax.jit(
            jax.grad(lambda log: jnp.sum(correction.weights(log, jnp.asarray(MASK), jnp.asarray(SEGMENTS))))
        )
        assert not np.asarray(slope(jnp.asarray(LOG))).any()
    inside = MASK[0] > 0
    np.testing.assert_allclose(found[inside], np.array(expected)[inside], rtol=1e-5)


def test_equal_numbers_weigh_1():
    with jax.set_mesh(single_device_mesh()):
        for kind in ("truncate", "mask_tokens", "mask_episodes"):
            found = Correction(kind=kind).weights(jnp.zeros((1, 8)), jnp.asarray(MASK), jnp.asarray(SEGMENTS))
            np.testing.assert_array_equal(np.asarray(found)[MASK > 0], 1)
