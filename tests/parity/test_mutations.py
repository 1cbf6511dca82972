"""Adds each known mistake in implementing Llama 4 to the NumPy twin: our model must disagree with every one.

This shows that the parity tests detect these mistakes. docs/reference/testing.md records which test detects each one in
our code.
"""

import functools

import numpy as np
import pytest

from tests.parity.llama4_numpy import MUTATIONS
from tests.parity.oracle import MODELS, Case, case, random_tokens
from tests.parity.test_logits import TOLERANCE

SEEN_ON = {name: "maverick" for name in MUTATIONS} | {
    "qk_norm_eps_1e_6": "scout_with_small_queries",
    "qk_norm_true_l2": "scout",
}


@functools.cache
def prepared(name: str) -> tuple[Case, np.ndarray, np.ndarray]:
    """Case, tokens [T] and our logits [T, V]."""
    if name == "scout_with_small_queries":  # so that the norm's epsilon is not negligible next to the mean square
        shrink = lambda path, p: p * np.float32(0.05) if path.endswith(("attention/q", "attention/k")) else p
        parameters = {path: shrink(path, p) for path, p in case("scout").parameters.items()}
        c = Case(MODELS["scout"], parameters)
    else:
        c = case(name)
    tokens = random_tokens(c.config, batch=1, length=40)
    return c, tokens[0], np.asarray(c.ours.logits(tokens))[0]


@pytest.mark.parametrize("name", sorted(set(SEEN_ON.values())))
def test_twin_without_mutation_agrees(name):
    c, tokens, ours = prepared(name)
    np.testing.assert_allclose(ours, c.twin().logits(tokens), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_mutation_is_detected(mutation):
    c, tokens, ours = prepared(SEEN_ON[mutation])
    error = np.abs(ours - c.twin(mutation).logits(tokens)).max()
    assert error > 10 * TOLERANCE, f"{mutation} moves the logits by {error:.1e} only"
