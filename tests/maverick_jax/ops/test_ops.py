"""Compares each fast operation with its slow twin, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maverick_jax.ops.attention import MaskSpec, Segments, attention, attention_reference, blocked
from maverick_jax.ops.collectives import vary_weight
from maverick_jax.ops.cross_entropy import cross_entropy, cross_entropy_reference
from maverick_jax.ops.dispatch import routed_experts
from maverick_jax.ops.grouped_matmul import grouped_swiglu, grouped_swiglu_reference
from maverick_jax.ops.linear import gated_linear, linear
from maverick_jax.saved import ATTENTION
from maverick_jax.sharding import ShardingRules

RULES = ShardingRules()


def random(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def check_close(got, expected, tolerance=2e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance * max(1.0, np.abs(b).max())
        ),
        got,
        expected,
    )


def value_and_gradients(f, *args):
    scored = lambda *args: jnp.sum(jnp.sin(f(*args)))
    return jax.jit(f)(*args), jax.jit(jax.grad(scored, argnums=tuple(range(len(args)))))(*args)


# ---- attention -----------------------------------------------------------------------------------------------------

MASKS = [
    MaskSpec(),
    MaskSpec("chunked", 8),
    MaskSpec("sliding_window", 8),
    MaskSpec("chunked", 64),
    MaskSpec("sliding_window", 5),
]


def documents(B, T):
    """Rows of three segments and padding, with borders at odd positions."""
    cuts = np.array([[5 + b, 23 + b, T - 3] for b in range(B)])
    index = np.arange(T)
    segment = 1 + (index[None, :, None] >= cuts[:, None, :]).sum(-1)
    start = np.where(segment == 1, 0, np.take_along_axis(np.c_[np.zeros(B, int), cuts], segment - 1, 1))
    segment = np.where(segment == 4, 0, segment)
    return Segments(jnp.asarray(index - start, jnp.int32), jnp.asarray(segment, jnp.int32))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_attention_equals_reference(mask, packed, monkeypatch):
    monkeypatch.setattr(blocked, "MIN_BLOCK", 16)
    B, T, N, K, H = 2, 48, 4, 2, 8
    q, k, v = random(B, T, N, H), random(B, T, K, H, seed=1), random(B, T, K, H, seed=2)
    places = documents(B, T) if packed else None
    fast = value_and_gradients(lambda q, k, v: attention(q, k, v, mask, places), q, k, v)
    slow = value_and_gradients(lambda q, k, v: attention_reference(q, k, v, mask, places), q, k, v)
    check_close(fast, slow)


@pytest.mark.parametrize("length", [1, 17, 40])
def test_attention_of_lengths_that_blocks_do_not_divide(length, monkeypatch):
    monkeypatch.setattr(blocked, "MIN_BLOCK", 16)
    q, k, v = random(1, length, 2, 4), random(1, length, 1, 4, seed=1), random(1, length, 1, 4, seed=2)
    for mask in MASKS:
        check_close(jax.jit(attention, static_argnums=3)(q, k, v, mask), attention_reference(q, k, v, mask))


# ---- experts -------------------------------------------------------------------------------------------------------


def experts(E, D, F):
    return random(E, D, 2, F, seed=3, scale=0.3), random(E, F, D, seed=4, scale=0.3)


@pytest.mark.parametrize("routing", ["uniform", "one expert"])
@pytest.mark.parametrize(
    "sizes", [{"expert": 8}, {"data": 2, "fsdp": 2, "expert": 2}, {"fsdp": 2, "tensor": 4}], ids=str
)
def test_expert_parallel_equals_reference(sizes, routing, mesh_of):
    B, T, D, F, E, k = 8, 6, 16, 8, 8, 2
    chosen = np.random.default_rng(6).integers(0, E + 1, (B, T, k)) if routing == "uniform" else np.full((B, T, k), 5)
    chosen = chosen.astype(np.int32)
    args = random(B, T, D), np.abs(random(B, T, k, seed=7)), *experts(E, D, F)

    def reference(x, scores, w_in, w_out):
        rows = (x[:, :, None] * scores[..., None]).reshape(-1, D)
        return grouped_swiglu_reference(rows, w_in, w_out, jnp.asarray(chosen.reshape(-1))).reshape(B, T, k, D).sum(2)

    expected = value_and_gradients(reference, *args)
    with mesh_of(**sizes):
        tokens = RULES("batch", "length", None)
        stored = (RULES("experts", "expert_embed", None, "expert_mlp"), RULES("experts", "expert_mlp", "expert_embed"))
        specs = tokens, tokens, *stored
        placed = [jax.device_put(a, spec) for a, spec in zip(args, specs, strict=True)]
        chosen = jax.device_put(chosen, tokens)
        got = value_and_gradients(lambda x, s, i, o: routed_experts(x, s, chosen, i, o, RULES), *placed)
        check_close(got, expected)


def test_expert_parallel_moves_tokens_not_weights(mesh_of):
    """The compiled exchange contains all-to-alls of rows and gathers no expert weights."""
    B, T, D, F, E = 8, 16, 8, 64, 8
    with mesh_of(expert=8):
        tokens = RULES("batch", "length", None)
        x = jax.device_put(random(B, T, D), tokens)
        scores, chosen = jax.device_put(np.ones((B, T, 1), np.float32), tokens), jnp.zeros((B, T, 1), jnp.int32)
        specs = P(RULES.experts, None, None, RULES.expert_mlp), P(RULES.experts, RULES.expert_mlp, None)
        w_in, w_out = (jax.device_put(w, spec) for w, spec in zip(experts(E, D, F), specs, strict=True))
        chosen = jax.device_put(chosen, tokens)
        f = lambda w_in, w_out: jnp.sum(routed_experts(x, scores, chosen, w_in, w_out, RULES) ** 2)
        text = jax.jit(jax.grad(f, argnums=(0, 1))).lower(w_in, w_out).compile().as_text()
    assert "all-to-all" in text
    assert "all-gather" not in text
    assert f"[{E},{D},{2 * F}]" not in text and f"[{E},{D},2,{F}]" not in text, "an array of all experts' weights"


# ---- cross-entropy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [{"data": 1}, {"tensor": 4, "fsdp": 2}, {"data": 2, "expert": 2, "tensor": 2}], ids=str
)
@pytest.mark.parametrize("chunk", [7, 64])
def test_cross_entropy_equals_reference(sizes, chunk, mesh_of):
    B, T, D, V = 4, 9, 8, 24
    hidden, head = random(B, T, D), random(D, V, seed=1)
    rng = np.random.default_rng(2)
    labels = rng.integers(0, V, (B, T)).astype(np.int32)
    weights = rng.uniform(0, 2, (B, T)).astype(np.float32) * (rng.uniform(size=(B, T)) > 0.3)

    def reference(hidden, head):
        return cross_entropy_reference(hidden, head, labels, weights, z_loss=0.01)

    expected = reference(hidden, head), jax.grad(lambda h, w: reference(h, w)[0], argnums=(0, 1))(hidden, head)
    with mesh_of(**sizes):
        tokens = RULES("batch", "length")
        h, w = (
            jax.device_put(hidden, RULES("batch", "length", None)),
            jax.device_put(head, RULES("embed", "vocab")),
        )
        y, k = jax.device_put(labels, tokens), jax.device_put(weights, tokens)
        f = jax.jit(lambda h, w: cross_entropy(h, w, y, k, rules=RULES, z_loss=0.01, chunk=chunk))
        gradient = jax.jit(jax.grad(lambda h, w: f(h, w)[0], argnums=(0, 1)))
        check_close((f(h, w), gradient(h, w)), expected)


def test_cross_entropy_never_allocates_all_logits(mesh_of):
    B, T, D, V = 2, 64, 8, 4096
    with mesh_of(data=1):
        tokens = RULES("batch", "length")
        hidden = jax.device_put(random(B, T, D), RULES("batch", "length", None))
        head = jax.device_put(random(D, V), RULES.compute("embed", "vocab"))
        labels, weights = (jax.device_put(np.ones((B, T), dtype), tokens) for dtype in (np.int32, np.float32))
        f = lambda h, w: cross_entropy(h, w, labels, weights, rules=RULES, chunk=16)[0]
        compiled = jax.jit(jax.grad(f, argnums=(0, 1))).lower(hidden, head).compile()
    assert f"[{B * T},{V}]" not in compiled.as_text() and f"[{B},{T},{V}]" not in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < B * T * V * 4


# ---- bfloat16 ---------------------------------------------------------------------------------------------------


def test_matrix_products_in_bfloat16_stay_near_float32():
    """Attention, linear maps and experts take bfloat16; gradients are bfloat16. 0.03: some ten roundings of up to 0.4%
    each follow one another. Lookups and norms: test_lookup.py, test_affine.py; whole models: test_precision.py."""
    B, T, N, H, E, F = 2, 32, 2, 16, 3, 8
    expert = jnp.asarray(np.random.default_rng(0).integers(0, E, B * T), jnp.int32)
    w_in, w_out = experts(E, N * H, F)

    def everything(q, w_in, w_out):
        y = attention(q, q, q, MaskSpec("chunked", 8))
        y = linear(y, w_out[0].reshape(F, N, H).transpose(1, 2, 0), inputs=2)
        y = gated_linear(y, y, w_out[0])
        return grouped_swiglu(y.reshape(B * T, N * H), w_in, w_out, expert)

    args = [jnp.asarray(x, jnp.bfloat16) for x in (random(B, T, N, H), w_in, w_out)]
    mark = random(B * T, N * H, seed=9)
    both = lambda *a: (
        everything(*a),
        jax.grad(lambda *a: jnp.sum(everything(*a).astype(jnp.float32) * mark), (0, 1, 2))(*a),
    )
    half, full = jax.jit(both)(*args), jax.jit(both)(*(x.astype(jnp.float32) for x in args))
    for got, expected in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        assert got.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(got, np.float32) - expected) / np.linalg.norm(expected)
        assert error < 0.03


def along(found, exact) -> float:
    """Length of `found` in the direction of `exact`, as a share of its length."""
    found, exact = (np.asarray(x, np.float64) for x in (found, exact))
    return float(np.sum(found * exact) / np.sum(exact * exact))


@pytest.mark.parametrize("total", [385.0, 1537.0, 1_000_003.0])
def test_bfloat16_gradients_of_cross_entropy_are_not_all_too_large_or_too_small(total, mesh_of):
    """1 / 385 is 0.17% off in bfloat16; gradients that are rounded at random are as long as the exact one."""
    B, T, D, V = 4, 64, 16, 48
    hidden, head = (jnp.asarray(random(*shape, seed=i), jnp.bfloat16) for i, shape in enumerate(((B, T, D), (D, V))))
    labels = np.random.default_rng(2).integers(0, V, (B, T)).astype(np.int32)

    def gradients(hidden, head):
        tokens = RULES("batch", "length")
        y, k = (jax.device_put(x, tokens) for x in (labels, np.ones((B, T), np.float32)))
        h, w = (
            jax.device_put(hidden, RULES("batch", "length", None)),
            jax.device_put(head, RULES.compute("embed", "vocab")),
        )
        loss = lambda h, w: cross_entropy(h, w, y, k, rules=RULES).total / total
        return jax.jit(jax.grad(loss, argnums=(0, 1)))(h, w)

    with mesh_of(data=1):
        half = gradients(hidden, head)
        full = gradients(hidden.astype(jnp.float32), head.astype(jnp.float32))
    for found, exact in zip(half, full, strict=True):
        assert found.dtype == jnp.bfloat16
        assert along(found, exact) == pytest.approx(
            1, abs=1e-3
        )  # roundings at random leave less; 1 / total: 1.7e-3 or more


def test_bfloat16_gradients_of_scores_sum_over_the_model_dimension_in_float32(mesh_of):
    """A score scales D = 4,096 numbers of its row. With weights of one sign no term of its gradient cancels another."""
    B, T, D, F = 1, 4, 4096, 2
    x, chosen = np.abs(random(B, T, D)) + 1, jnp.zeros((B, T, 1), jnp.int32)
    w_in, w_out = (np.abs(w) * 0.01 for w in experts(1, D, F))

    def gradient(dtype):
        tokens = RULES("batch", "length", None)
        specs = (
            tokens,
            tokens,
            tokens,
            P(RULES.experts, None, None, RULES.expert_mlp),
            P(RULES.experts, RULES.expert_mlp),
        )
        arrays = (
            jnp.asarray(a, d)
            for a, d in ((x, dtype), (np.ones((B, T, 1)), dtype), (chosen, jnp.int32), (w_in, dtype), (w_out, dtype))
        )
        x_, ones, e, w_in_, w_out_ = map(jax.device_put, arrays, specs)
        loss = lambda s: jnp.mean(routed_experts(x_, s, e, w_in_, w_out_, RULES).astype(jnp.float32))
        return np.asarray(jax.jit(jax.grad(loss))(ones), np.float32)

    with mesh_of(data=1):
        np.testing.assert_allclose(gradient(jnp.bfloat16), gradient(jnp.float32), rtol=0.02)  # as of matrix products


def test_weight_gradients_are_summed_over_devices_in_float32(mesh_of):
    """By the program: XLA's CPU sums bfloat16 in float32 anyway, other backends do not."""
    with mesh_of(data=2):
        program = lambda w: jnp.sum(
            jax.shard_map(lambda w, x: vary_weight(w, ("data",)) * x, in_specs=(P(), P("data")), out_specs=P("data"))(
                w, jax.device_put(jnp.ones(2, jnp.bfloat16), P("data"))
            ).astype(jnp.float32)
        )
        jaxpr = str(jax.make_jaxpr(jax.grad(program))(jnp.ones(2, jnp.bfloat16)[:1]))
    sums = [line for line in jaxpr.splitlines() if "psum" in line]
    assert sums and all(":f32[" in line for line in sums)


# ---- linear --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", ["in", "out"])
def test_linear_equals_einsum(wide):
    x, w = (
        (random(2, 5, 6, 4), random(6, 4, 3, seed=1)) if wide == "in" else (random(2, 5, 2, 2), random(2, 2, 9, seed=1))
    )
    fast = value_and_gradients(lambda x, w: linear(x, w, inputs=2), x, w)
    check_close(fast, value_and_gradients(lambda x, w: jnp.einsum("BTab,abc->BTc", x, w), x, w))


def test_gated_linear_equals_composition():
    args = random(2, 5, 6), random(2, 5, 6, seed=1), random(6, 3, seed=2)
    fast = value_and_gradients(gated_linear, *args)
    check_close(fast, value_and_gradients(lambda g, u, d: jnp.einsum("BTF,FD->BTD", jax.nn.silu(g) * u, d), *args))


@pytest.mark.parametrize(("names", "times"), [((ATTENTION,), 2), ((), 3)])
def test_attention_runs_forward_once_if_its_results_are_kept(names, times):
    """The weights of both blocks of queries are computed in the forward pass and from logsumexp in the backward pass,
    and, where neither output nor logsumexp is kept, once more."""
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    layer = jax.checkpoint(lambda q, k, v: attention(jnp.sin(q), k, v, MaskSpec()), policy=policy)
    q, k = jnp.ones((1, 256, 4, 8)), jnp.ones((1, 256, 2, 8))
    text = jax.jit(jax.grad(lambda q, k, v: jnp.sum(layer(q, k, v) ** 2), (0, 1, 2))).lower(q, k, k).as_text()
    assert text.count("stablehlo.exponential") == times * 2
