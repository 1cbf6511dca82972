"""Reasoning heads: nothing at first, tokens beyond the chunk later, and the same packed, alone and on meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maverick_jax.checkpoint import names
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.reasoning_heads import LayerHeads, marked_tokens
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.marked import attention_to_marked_reference
from maverick_jax.reasoning import Mark, ReasoningHeads
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny

HEADS = ReasoningHeads(schema_heads=2, scratch_heads=2, schema_tokens=16, scratch_tokens=16)
PLAIN = {"num_hidden_layers": 2, "num_local_experts": 0, "interleave_moe_layer_step": 1, "no_rope_layer_interval": 2}
LENGTH = 32


def config(**changes):
    return tiny.model_config(**PLAIN, reasoning_heads=HEADS, **changes)


@functools.cache
def fields() -> dict[str, np.ndarray]:
    """Rows with two documents, in which a fourth of the tokens is marked."""
    found = {name: x[0] for name, x in tiny.batch(config(), rows=4, length=LENGTH).items()}
    rng = np.random.default_rng(0)
    marks = np.where(rng.random((4, LENGTH)) < 0.25, rng.integers(1, 3, (4, LENGTH)), 0)
    return {name: found[name] for name in ("tokens", "positions", "segment_ids")} | {"marks": marks.astype(np.int32)}


def drawn(model: Maverick) -> Maverick:
    """The model with output matrices of reasoning heads that are not zero, equal on every mesh."""

    def value(name: str, x: jax.Array) -> jax.Array:
        if not name.endswith("/o") or "reasoning" not in name:
            return x
        return jax.device_put(np.random.default_rng(0).normal(size=x.shape).astype(np.float32), x.sharding)

    return names.unflatten(model, {name: value(name, x) for name, x in names.flatten(model).items()})


def logits(sizes: dict[str, int], mesh_of) -> np.ndarray:
    with mesh_of(**sizes):
        model = drawn(jax.jit(lambda: Maverick(config(), rngs=nnx.Rngs(0)))())
        return np.asarray(model.logits(**fields()))


def test_a_new_model_with_heads_is_the_plain_model_bit_for_bit():
    plain, model = tiny.model_of(tiny.model_config(**PLAIN), 0), tiny.model_of(config(), 0)
    own = names.flatten(plain)
    model = names.unflatten(model, {name: own.get(name, x) for name, x in names.flatten(model).items()})
    rows = {name: x for name, x in fields().items() if name != "marks"}
    np.testing.assert_array_equal(model.logits(**fields()), plain.logits(**rows))


def test_heads_without_marks_add_nothing():
    model = drawn(tiny.model_of(config(), 0))
    rows = {name: x for name, x in fields().items() if name != "marks"}
    none = np.zeros_like(fields()["marks"])
    np.testing.assert_array_equal(model.logits(**rows, marks=none), model.logits(**rows))
    assert np.abs(np.asarray(model.logits(**fields()) - model.logits(**rows))).max() > 1e-2


def test_the_heads_of_a_layer_are_their_twin_in_value_and_gradient():
    rows = {name: jnp.asarray(x) for name, x in fields().items()}
    with jax.set_mesh(single_device_mesh()):
        placed = {name: jax.device_put(x, tiny.RULES("batch", "length")) for name, x in rows.items()}
        heads = drawn_layer(LayerHeads(config(), tiny.RULES, rngs=nnx.Rngs(0)))
        x = jax.random.normal(jax.random.key(1), (4, LENGTH, 32))
        x = jax.device_put(x, tiny.RULES("batch", "length", None))
        inputs = Inputs(placed["tokens"], placed["positions"], placed["segment_ids"], placed["marks"])

        def fast(heads, x):
            return jnp.sum(jnp.sin(heads(x, marked_tokens(config(), inputs, tiny.RULES))) * _real(rows))

        found = jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(fast, argnums=(0, 1)))(heads, x))

    def slow(heads, x):
        y = 0.0
        for name, mark in (("schema", Mark.SCHEMA), ("scratch", Mark.SCRATCH)):
            q, k, v = (jnp.einsum("BTD,DNH->BTNH", x, heads[f"{name}/{part}"]) for part in "qkv")
            seen = attention_to_marked_reference(q, k, v, rows["marks"] == mark, rows["segment_ids"])
            y += jnp.einsum("BTNH,NHD->BTD", seen, heads[f"{name}/o"])
        return jnp.sum(jnp.sin(y * jnp.tanh(heads["gain"])[None, None, :]) * _real(rows))

    own = {name: np.asarray(x) for name, x in names.flatten(heads).items()}
    value, (of_heads, of_x) = jax.value_and_grad(slow, argnums=(0, 1))(own, np.asarray(x))
    np.testing.assert_allclose(found[0], value, rtol=1e-5)
    np.testing.assert_allclose(found[1][1], of_x, atol=1e-5, rtol=0)
    for name, gradient in names.flatten(found[1][0]).items():
        np.testing.assert_allclose(gradient, of_heads[name], rtol=1e-4, atol=1e-4, err_msg=name)


def drawn_layer(heads: LayerHeads) -> LayerHeads:
    rng = np.random.default_rng(0)
    value = lambda name, x: jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32) if name.endswith("/o") else x
    return names.unflatten(heads, {name: value(name, x) for name, x in names.flatten(heads).items()})


def _real(rows) -> jax.Array:
    return (rows["segment_ids"] > 0).astype(jnp.float32)[..., None]


def test_a_document_in_a_packed_row_is_as_if_it_were_alone():
    model, rows = drawn(tiny.model_of(config(), 0)), fields()
    packed = np.asarray(model.logits(**rows))
    for row, segment in ((0, 1), (0, 2), (3, 2)):
        at = np.flatnonzero(rows["segment_ids"][row] == segment)
        alone = {name: np.zeros((4, LENGTH), np.int32) for name in rows}
        for name, x in rows.items():
            alone[name][0, : at.size] = 1 if name == "segment_ids" else x[row, at]
        found = np.asarray(model.logits(**alone))[0, : at.size]
        np.testing.assert_allclose(found, packed[row, at], atol=1e-5, rtol=0)


def test_only_marked_tokens_are_seen_from_beyond_the_chunk():
    local = tiny.model_config(**{**PLAIN, "no_rope_layer_interval": 0}, reasoning_heads=HEADS)
    model = drawn(tiny.model_of(local, 0))
    tokens = fields()["tokens"] * 0 + 5
    changed = tokens.copy()
    changed[:, 2] = 9
    for mark, seen in ((Mark.NONE, False), (Mark.SCHEMA, True), (Mark.SCRATCH, True)):
        marks = np.zeros_like(tokens)
        marks[:, 2] = mark
        last = [np.asarray(model.logits(x, marks=marks))[:, 20] for x in (tokens, changed)]
        assert (np.abs(last[0] - last[1]).max() > 1e-4) == seen


@pytest.mark.parametrize(
    "sizes",
    [
        {"fsdp": 2, "context": 2, "tensor": 2},
        pytest.param({"expert": 2, "data": 2, "tensor": 2}, marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_one_device(sizes, mesh_of):
    found, expected = logits(sizes, mesh_of), logits({"data": 1}, mesh_of)
    real = fields()["segment_ids"][..., None] > 0
    np.testing.assert_allclose(np.where(real, found, 0), np.where(real, expected, 0), atol=2e-5, rtol=0)
