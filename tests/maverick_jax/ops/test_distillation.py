"""Compares the chunked, vocabulary-sharded divergences with their slow twins on whole logits, in value and gradient."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops.distillation import Divergence, Weighed, distillation, distillation_reference, whole_target
from maverick_jax.sharding import ShardingRules
from tests.parity import jsd_oracle

B, T, V, RULES = 4, 6, 40, ShardingRules()
TRL = json.loads(jsd_oracle.GOLDEN.read_text())
DIVERGENCES = {
    "forward": Divergence(),
    "reverse": Divergence(beta=1.0),
    "jsd": Divergence(beta=0.3),
    "hot_forward": Divergence(temperature=2.5, tau_squared=True),
    "cold_jsd": Divergence(beta=0.7, temperature=0.6),
    "hot_reverse": Divergence(beta=1.0, temperature=3.0, tau_squared=True),
}


def inputs(seed: int = 0, student_width: int = 12, teacher_width: int = 20):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    pair = lambda D: (normal(B, T, D), normal(D, V) * np.float32(2 / np.sqrt(D)))
    weights = rng.uniform(0.2, 2, (B, T)) * (rng.uniform(size=(B, T)) < 0.7)
    labels = rng.integers(0, V, (B, T)).astype(np.int32)
    labels = np.where(rng.uniform(size=(B, T)) < 0.25, ~labels, labels)  # some labels are samples
    return pair(student_width), pair(teacher_width), labels, weights.astype(np.float32)


def fixed(terms, weights, controls):
    return Weighed((1 - controls["alpha"]) * weights, controls["alpha"] * weights, {})


def confident(terms, weights, controls):
    """Weights that depend on every term, through which no gradient may pass."""
    soft = weights * controls["alpha"] * jnp.exp(-terms.teacher_nll) / (1 + terms.teacher_entropy)
    hard = weights * jax.nn.sigmoid(terms.nll - terms.divergence)
    return Weighed(hard, soft, {"confidence": jnp.exp(-terms.teacher_nll)})


CONTROLS = {"alpha": np.float32(0.6)}
BETWEEN = CONTROLS | {"interpolation": np.float32(0.4)}


def evaluated(function, controls, seed=0):
    """(sums, gradient of the total with respect to the student's hidden states and head), as NumPy."""
    student, teacher, labels, weights = inputs(seed)
    rows, hidden = RULES("batch", "length"), RULES("batch", "length", None)
    heads = RULES("embed", "vocab"), RULES.compute("embed", "vocab")
    placed = function.func is distillation  # the slow twin has no mesh
    place = jax.device_put if placed else lambda x, spec: jnp.asarray(x)
    student, teacher = (
        (place(pair[0], hidden), place(pair[1], head)) for pair, head in zip((student, teacher), heads, strict=True)
    )
    arguments = whole_target(*teacher), place(labels, rows), place(weights, rows), jax.tree.map(jnp.asarray, controls)

    def loss(student):
        sums = function(student, *arguments)
        return sums.total, sums

    (_, sums), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(student)
    return jax.tree.map(np.asarray, (sums, grads))


def assert_same(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("chunk", [5, None])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_chunks_equal_whole_logits(name, chunk, mesh_of):
    options = {"weigh": fixed, "divergence": DIVERGENCES[name]}
    expected = evaluated(functools.partial(distillation_reference, **options), CONTROLS)
    with mesh_of(data=1):
        found = evaluated(functools.partial(distillation, **options, rules=RULES, chunk=chunk), CONTROLS)
    assert np.abs(expected[1][0]).max() > 0.01
    assert_same(found, expected)


@pytest.mark.parametrize("weigh", [fixed, confident])
@pytest.mark.parametrize("name", ["forward", "cold_jsd"])
def test_weights_per_token_and_targets_between_student_and_teacher(name, weigh, mesh_of):
    options = {"weigh": weigh, "divergence": DIVERGENCES[name]}
    expected = evaluated(functools.partial(distillation_reference, **options), BETWEEN)
    with mesh_of(data=1):
        found = evaluated(functools.partial(distillation, **options, rules=RULES, chunk=7), BETWEEN)
    assert_same(found, expected)


@pytest.mark.parametrize("sizes", [{"tensor": 2}, {"tensor": 4, "data": 2}, {"fsdp": 2, "expert": 2, "tensor": 2}])
@pytest.mark.parametrize("name", ["forward", "hot_reverse", "jsd"])
def test_any_mesh_gives_the_same(name, sizes, mesh_of):
    options = {"weigh": confident, "divergence": DIVERGENCES[name]}
    expected = evaluated(functools.partial(distillation_reference, **options), CONTROLS)
    with mesh_of(**sizes):
        found = evaluated(functools.partial(distillation, **options, rules=RULES, chunk=3), CONTROLS)
    assert_same(found, expected)


def on_mesh(pair, tokens):
    """A pair (hidden, head) and arrays [B, T], sharded for `distillation` on the current mesh."""
    specs = (RULES("batch", "length", None), RULES.compute("embed", "vocab"))
    place = lambda x: jax.device_put(x, RULES("batch", "length"))
    return tuple(map(jax.device_put, pair, specs)), tuple(map(place, tokens))


@pytest.mark.parametrize("total", [385.0, 1537.0])
def test_bfloat16_gradients_are_not_all_too_large_or_too_small(total, mesh_of):
    """1 / 385 is 0.17% off in bfloat16; gradients that are rounded at random are as long as the exact one."""
    student, teacher, labels, _ = inputs(student_width=64)
    weights, controls = np.ones((B, T), np.float32), jax.tree.map(jnp.asarray, CONTROLS)
    options = {"weigh": fixed, "divergence": Divergence(), "rules": RULES}

    def gradients(dtype):
        specs, tokens = (RULES("batch", "length", None), RULES.compute("embed", "vocab")), RULES("batch", "length")
        # both dtypes start from the same bfloat16 numbers
        half = lambda pair: (jnp.asarray(x, jnp.bfloat16).astype(dtype) for x in pair)
        mine, theirs = (tuple(map(jax.device_put, half(pair), specs)) for pair in (student, teacher))
        y, k = jax.device_put(labels, tokens), jax.device_put(weights, tokens)
        loss = lambda pair: distillation(pair, whole_target(*theirs), y, k, controls, **options).total / total
        return jax.jit(jax.grad(loss))(mine)

    with mesh_of(data=1):
        half, full = gradients(jnp.bfloat16), gradients(jnp.float32)
    for found, exact in zip(half, full, strict=True):
        found, exact = (np.asarray(x, np.float64) for x in (found, exact))
        # roundings at random leave less than 1e-3; 1 / total left 1.7e-3 or more
        assert np.sum(found * exact) / np.sum(exact**2) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_equal_to_its_teacher_gets_no_gradient(name, mesh_of):
    soft_only = lambda terms, weights, controls: Weighed(0 * weights, weights, {})
    options = {"weigh": soft_only, "divergence": DIVERGENCES[name], "rules": RULES}
    with mesh_of(data=1):
        student, tokens = on_mesh(inputs()[0], inputs()[2:])
        loss = lambda pair: distillation(pair, whole_target(*student), *tokens, {}, **options).total
        total, grads = jax.jit(jax.value_and_grad(loss))(student)
    assert abs(float(total)) < 1e-4
    assert max(float(jnp.abs(g).max()) for g in grads) < 1e-4


def test_rows_without_weight_have_no_effect(mesh_of):
    """Padding may contain anything: its logits affect neither the sums nor the gradient."""
    student, teacher, labels, weights = inputs()
    other = student[0] + 5 * (weights == 0)[..., None].astype(np.float32)
    always = lambda terms, weights, controls: Weighed(jnp.ones_like(weights), jnp.ones_like(weights), {})
    options = {"weigh": always, "divergence": Divergence(), "rules": RULES}

    def run(hidden):
        mine, tokens = on_mesh((hidden, student[1]), (labels, weights))
        theirs, _ = on_mesh(teacher, ())
        loss = lambda x: distillation((x, mine[1]), whole_target(*theirs), *tokens, {}, **options).total
        return jax.jit(jax.value_and_grad(loss))(mine[0])

    with mesh_of(data=1):
        (a, da), (b, db) = run(student[0]), run(other)
    assert a == b and not any(np.any(np.asarray(grad)[weights == 0]) for grad in (da, db))


@pytest.mark.parametrize(
    "case", TRL["cases"], ids=lambda case: f"beta {case['beta']}, temperature {case['temperature']}"
)
def test_divergences_equal_those_of_trl(case, mesh_of):
    student, teacher, counts = jsd_oracle.logits()
    head = np.eye(student.shape[-1], dtype=np.float32)  # so that hidden states are logits
    weights = (counts / counts.sum()).astype(np.float32)
    soft_only = lambda terms, weights, controls: Weighed(0 * weights, weights, {})
    options = {"weigh": soft_only, "divergence": Divergence(case["beta"], case["temperature"]), "rules": RULES}
    with mesh_of(data=1):
        mine, tokens = on_mesh((student, head), (np.zeros(counts.shape, np.int32), weights))
        theirs, _ = on_mesh((teacher, head), ())
        loss = lambda hidden: (
            distillation((hidden, mine[1]), whole_target(*theirs), *tokens, {}, **options, chunk=3).total
        )
        total, gradient = jax.jit(jax.value_and_grad(loss))(mine[0])
    np.testing.assert_allclose(total, case["loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, case["gradient"], atol=1e-5)


@pytest.mark.slow
def test_golden_divergences_equal_those_of_the_installed_trl():
    pytest.importorskip("trl")
    found = jsd_oracle.golden()
    assert found["cases"] == TRL["cases"]
