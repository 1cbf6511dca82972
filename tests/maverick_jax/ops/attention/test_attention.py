"""Every kernel against the slow twin, in value and gradient, on the same cases.

A kernel runs for real where its devices are. Elsewhere splash attention is interpreted, and cuDNN's calls are replaced
by a stand-in that reads and writes the same elements: all but the kernel itself is tested.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops.attention import KERNELS, MaskSpec, attention_reference
from maverick_jax.ops.attention.spec import AttentionCase
from maverick_jax.target import traced_platform
from tests.helpers import cudnn_stand_in
from tests.maverick_jax.ops.attention.test_pieces import rows_of

MASKS = [MaskSpec(), MaskSpec("chunked", 16), MaskSpec("chunked", 13), MaskSpec("sliding_window", 9)]
ROWS = {
    "unpacked": None,
    "packed": [[5, 23, 17, 3], [48]],
    "padded": [[5, 40, -3], [-4, 30, -6, 7, -1]],
    "many short": [[2] * 24, [1, 3] * 12],
}
SHAPES = {"grouped": (4, 2), "all heads": (2, 2), "one key head": (3, 1)}
OFTEN = {
    (0, "packed"),
    (0, "many short"),
    (1, "unpacked"),
    (1, "padded"),
    (1, "many short"),
    (2, "packed"),
    (3, "padded"),
}
"""The cases that the quick suite runs: each mask and each kind of rows."""
CASES = [
    pytest.param(mask, rows, "grouped", marks=() if (i, rows) in OFTEN else pytest.mark.slow)
    for i, mask in enumerate(MASKS)
    for rows in ROWS
]
CASES += [(MASKS[1], "padded", "all heads"), (MASKS[0], "packed", "one key head")]


def case_of(rows, T, N, K, H, dtype):
    B = 2
    rng = np.random.default_rng(0)
    q, k, v, weights = (jnp.asarray(rng.normal(size=(B, T, n, H)), dtype) for n in (N, K, K, N))
    if rows is None:
        return q, k, v, weights, None
    segments = rows_of(rows, T)
    return q, k, v, jnp.where((segments.segment_ids > 0)[..., None, None], weights, 0), segments


def both(f, q, k, v, weights, segments):
    """Output at real tokens and gradients."""
    scored = lambda q, k, v: jnp.sum((f(q, k, v) * weights).astype(jnp.float32))
    out, grads = jax.jit(f)(q, k, v), jax.jit(jax.grad(scored, (0, 1, 2)))(q, k, v)
    return jnp.where(weights != 0, out, 0), *grads


@pytest.mark.parametrize(("mask", "rows", "heads"), CASES, ids=lambda case: str(case))
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_kernels_equal_the_reference(kernel, mask, rows, heads, monkeypatch):
    real = not kernel.platforms or traced_platform() in kernel.platforms
    dtype = jnp.bfloat16 if real and kernel.platforms else jnp.float32
    T = 128 if kernel.name == "splash" else 48  # rows of 48 tokens, and then padding
    q, k, v, weights, segments = case_of(ROWS[rows], T, *SHAPES[heads], 64 if real and kernel.platforms else 16, dtype)
    if real:
        if reason := kernel.why_not(AttentionCase.of(q, k, mask, segments)):
            pytest.skip(f"not {kernel.name}, {reason}")
    elif kernel.name == "cudnn":
        cudnn_stand_in.install(monkeypatch)
    expected = both(lambda q, k, v: attention_reference(q, k, v, mask, segments),
                    *(x.astype(jnp.float32) for x in (q, k, v, weights)), segments)  # fmt: skip
    for found, exact in zip(both(lambda q, k, v: kernel.run(q, k, v, mask, segments), q, k, v, weights, segments),
                            expected, strict=True):  # fmt: skip
        if dtype == jnp.float32:
            np.testing.assert_allclose(found, exact, atol=3e-5 * max(1.0, float(jnp.abs(exact).max())), rtol=2e-5)
        else:  # some four roundings of up to 0.4% follow one another
            difference = jnp.linalg.norm((found - exact).astype(jnp.float32).ravel())
            assert float(difference) < 0.015 * float(jnp.linalg.norm(exact.ravel()))
