"""Logits of rows that devices share equal those of one device, with and without positions and segments."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from tests.helpers import tiny

LENGTH = 32
KINDS = {
    "chunked": {"attention_chunk_size": 4},
    "chunks longer than blocks": {"attention_chunk_size": 12},
    "sliding window": {"attention_chunk_size": 6, "local_attention": "sliding_window"},
    "global": {"attention_chunk_size": None},
}
GIVEN = {
    "tokens": (),
    "segments": ("segment_ids",),
    "positions": ("positions",),
    "both": ("positions", "segment_ids"),
}


@functools.cache
def fields() -> dict[str, np.ndarray]:
    """Rows whose second document begins anywhere, so that chunks of it lie on two devices."""
    found = tiny.batch(tiny.model_config(), length=LENGTH, rows=4)
    return {name: x[0] for name, x in found.items()}


def logits(kind: str, given: str, sizes, mesh_of, *, traced: bool = False) -> np.ndarray:
    config = tiny.model_config(num_hidden_layers=2, no_rope_layer_interval=2, **KINDS[kind])
    rows = {name: fields()[name] for name in GIVEN[given]}
    with mesh_of(**sizes):
        model = jax.jit(lambda: Maverick(config, rngs=nnx.Rngs(0)))()
        call = lambda model, tokens, rows: model.logits(tokens, **rows)
        if traced:
            call, rows = jax.jit(call), jax.device_put(rows, tiny.RULES("batch", None))
        found = np.asarray(call(model, jax.device_put(fields()["tokens"], tiny.RULES("batch", None)), rows))
    real = fields()["segment_ids"] > 0 if "segment_ids" in rows else np.ones((4, LENGTH), bool)
    return np.where(real[..., None], found, 0)


CASES = [
    ("chunked", "both"),
    *(pytest.param("chunked", given, marks=pytest.mark.slow) for given in GIVEN if given != "both"),
    ("global", "both"),
    *(pytest.param(kind, "both", marks=pytest.mark.slow) for kind in KINDS if kind not in ("chunked", "global")),
    pytest.param("sliding window", "tokens", marks=pytest.mark.slow),
    pytest.param("chunks longer than blocks", "tokens", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "given"), CASES)
def test_logits_are_those_of_one_device(kind, given, mesh_of):
    sizes = {"context": 4} if kind == "chunked" else {"context": 2, "fsdp": 2, "tensor": 2}
    expected = logits(kind, given, {"data": 1}, mesh_of)
    np.testing.assert_allclose(logits(kind, given, sizes, mesh_of), expected, atol=2e-5, rtol=0)


def test_traced_logits_are_those_of_one_device(mesh_of):
    expected = logits("chunked", "both", {"data": 1}, mesh_of)
    np.testing.assert_allclose(
        logits("chunked", "both", {"context": 4}, mesh_of, traced=True), expected, atol=2e-5, rtol=0
    )


def test_a_length_that_devices_cannot_share_is_refused(mesh_of):
    with mesh_of(context=4):
        model = jax.jit(lambda: Maverick(tiny.model_config(num_hidden_layers=1), rngs=nnx.Rngs(0)))()
        with pytest.raises(InputError, match="tokens: 6 tokens a sequence; expected a multiple of 4"):
            model.logits(np.zeros((1, 6), np.int32))
