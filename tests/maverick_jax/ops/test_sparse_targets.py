"""Compares top k, tail and samples of a sharded vocabulary, and the loss on them, with slow twins on whole logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops.distillation import (
    Divergence,
    Weighed,
    distillation,
    distillation_reference,
    whole_target,
)
from maverick_jax.ops.sparse_targets import TopKTargets, sparse_target
from maverick_jax.ops.top_k import top_k, top_k_reference
from maverick_jax.sharding import ShardingRules

B, T, D, V, RULES = 4, 6, 12, 40, ShardingRules()
MESHES = [{"data": 1}, {"tensor": 2}, {"tensor": 4, "data": 2}]


def inputs(samples: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    labels = rng.integers(0, V, (B, T)).astype(np.int32)
    labels = np.where(rng.uniform(size=(B, T)) < 0.25, ~labels, labels)
    uniforms = rng.uniform(size=(B, T, samples)).astype(np.float32)
    return normal(B, T, D), normal(D, V) * np.float32(3 / np.sqrt(D)), labels, uniforms


def tops(sizes, mesh_of, arguments, **options):
    specs = RULES("batch", "length"), RULES.compute("embed", "vocab")
    with mesh_of(**sizes):
        placed = [jax.device_put(x, specs[i == 1]) for i, x in enumerate(arguments)]
        found = jax.jit(functools.partial(top_k, rules=RULES, **options))(*placed)
        return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize(("k", "temperature", "chunk"), [(5, 1.0, None), (17, 2.5, 5)])
def test_top_k_of_a_sharded_vocabulary_equals_whole_logits(k, temperature, chunk, sizes, mesh_of):
    arguments = inputs()
    expected = top_k_reference(*arguments, k=k, temperature=temperature)
    found = tops(sizes, mesh_of, arguments, k=k, temperature=temperature, chunk=chunk)
    for name, a, b in zip(found._fields, found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5, err_msg=name)
    assert len(np.unique(found.sample_ids)) > 10
    assert not (found.sample_ids[..., None] == found.ids[..., None, :]).any()  # no sample is in the top k


def test_the_whole_vocabulary_leaves_no_tail(mesh_of):
    found = tops({"tensor": 2}, mesh_of, inputs(samples=0), k=V, temperature=1.0)
    assert (found.log_tail == -np.inf).all()
    np.testing.assert_allclose(np.exp(found.log_probs).sum(-1), 1, rtol=1e-5)
    assert (np.sort(found.ids) == np.arange(V)).all()


def test_a_tail_is_exact_however_small_it_is(mesh_of):
    """1 - (sum of the top k) would be 0."""
    hidden, head = np.ones((1, 1, 1), np.float32), np.zeros((1, 64), np.float32)
    head[0, 7] = 40.0
    arguments = hidden, head, np.zeros((1, 1), np.int32), np.array([[[0.0, 0.5, 1 - 2**-24]]], np.float32)
    found = tops({"data": 1}, mesh_of, arguments, k=1, temperature=1.0)
    np.testing.assert_allclose(found.log_tail, np.log(63) - 40, rtol=1e-6)
    assert found.sample_ids.ravel().tolist() == [0, 32, 63]
    np.testing.assert_allclose(found.sample_log_probs, -40, rtol=1e-6)


def test_samples_follow_the_tail(mesh_of):
    """Each token of the tail is drawn in proportion to its mass."""
    rng = np.random.default_rng(1)
    head = rng.normal(size=(1, V)).astype(np.float32)
    draws = 20_000
    uniforms = rng.uniform(size=(1, 1, draws)).astype(np.float32)
    arguments = np.ones((1, 1, 1), np.float32), head, np.zeros((1, 1), np.int32), uniforms
    found = tops({"tensor": 2}, mesh_of, arguments, k=4, temperature=1.0)
    mass = np.exp(head[0].astype(np.float64))
    mass[found.ids.ravel()] = 0
    mass /= mass.sum()
    counts = np.bincount(found.sample_ids.ravel(), minlength=V)
    error = np.sqrt(draws * mass * (1 - mass)) + 1e-9
    assert (np.abs(counts - draws * mass) / error).max() < 4
    assert counts[found.ids.ravel()].sum() == 0


# ---- the loss on stored targets --------------------------------------------------------------------------------------


def kept_of(teacher, labels, k, temperature, samples=0, seed=3) -> TopKTargets:
    uniforms = np.random.default_rng(seed).uniform(size=(B, T, samples)).astype(np.float32)
    top = top_k_reference(*teacher, labels, uniforms, k=k, temperature=temperature)
    drawn = {"sample_ids": top.sample_ids, "sample_log_probs": top.sample_log_probs} if samples else {}
    return TopKTargets(top.ids.astype(np.uint16), top.log_probs, top.log_tail, top.label_log_prob, top.entropy, **drawn)


def weigh(terms, weights, controls):
    """Weights that depend on every term, through which no gradient may pass."""
    soft = weights * jnp.exp(-terms.teacher_nll) / (1 + terms.teacher_entropy)
    return Weighed(0.3 * weights, soft, {"confidence": jnp.exp(-terms.teacher_nll)})


def evaluated(function, student, target, labels, weights, controls, place, **options):
    """(sums, gradient of the total with respect to the student's pair), as NumPy."""
    spec = RULES("batch", "length"), RULES.compute("embed", "vocab")
    student = tuple(map(place, student, spec))
    target = dataclasses.replace(target, rows=jax.tree.map(lambda x: place(x, spec[0]), target.rows))
    if jax.tree.leaves(target.fixed):
        target = dataclasses.replace(target, fixed=place(target.fixed, spec[1]))
    arguments = target, place(labels, spec[0]), place(weights, spec[0]), jax.tree.map(jnp.asarray, controls)

    def loss(student):
        sums = function(student, *arguments, weigh=weigh, **options)
        return sums.total, sums

    (_, sums), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(student)
    return jax.tree.map(np.asarray, (sums, grads))


def problem():
    hidden, head, labels, _ = inputs(seed=4)
    teacher = inputs(seed=5)[:2]
    rng = np.random.default_rng(6)
    weights = (rng.uniform(0.2, 2, (B, T)) * (rng.uniform(size=(B, T)) < 0.7)).astype(np.float32)
    return (hidden, head), teacher, labels, weights


def plainly(target, controls=None, **options):
    student, _, labels, weights = problem()
    place = lambda x, spec: jnp.asarray(x)
    return evaluated(distillation_reference, student, target, labels, weights, controls or {}, place, **options)


def assert_same(found, expected, tolerance=1e-5):
    leaves = [jax.tree_util.tree_leaves_with_path(x) for x in (found, expected)]
    for (path, a), (_, b) in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance, err_msg=str(path))


CASES = [
    ("tail", Divergence(), {}),
    ("tail", Divergence(beta=1.0, temperature=2.0, tau_squared=True), {}),
    ("tail", Divergence(beta=0.3), {"interpolation": np.float32(0.4)}),
    ("renormalised", Divergence(temperature=2.0), {}),
    ("renormalised", Divergence(beta=1.0), {}),
    ("renormalised", Divergence(beta=0.7, temperature=0.6), {}),
    ("sampled", Divergence(), {}),
    ("sampled", Divergence(temperature=3.0, tau_squared=True), {}),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_sparse_targets_equal_whole_logits_on_any_mesh(case, mesh_of):
    mode, divergence, controls = CASES[case]
    sizes, chunk = MESHES[case % len(MESHES)], (5, None, 3)[case % 3]
    student, teacher, labels, weights = problem()
    kept = kept_of(teacher, labels, 6, divergence.temperature, samples=5)
    target = sparse_target(kept, mode)
    expected = plainly(target, controls, divergence=divergence)
    assert np.abs(expected[1][0]).max() > 0.01
    with mesh_of(**sizes):
        options = {"divergence": divergence, "rules": RULES, "chunk": chunk}
        found = evaluated(distillation, student, target, labels, weights, controls, jax.device_put, **options)
    assert_same(found, expected)


@pytest.mark.parametrize(
    "divergence", [Divergence(), Divergence(beta=1.0, temperature=2.0), Divergence(beta=0.4, tau_squared=True)]
)
def test_the_whole_vocabulary_gives_the_whole_divergence(divergence, mesh_of):
    student, teacher, labels, weights = problem()
    expected = plainly(whole_target(*teacher), divergence=divergence)
    kept = kept_of(teacher, labels, V, divergence.temperature)
    assert np.isneginf(kept.log_tail).all()
    with mesh_of(tensor=2):
        options = {"divergence": divergence, "rules": RULES, "chunk": 5}
        found = evaluated(
            distillation, student, sparse_target(kept, "tail"), labels, weights, {}, jax.device_put, **options
        )
    assert_same(found[1], expected[1])
    assert_same(found[0]._replace(terms=found[0].terms._replace(extra={})), expected[0])
    np.testing.assert_allclose(found[0].terms.extra["student_mass"], weights.sum(), rtol=1e-5)


def test_the_tail_mode_approaches_the_whole_kl_from_below():
    """It is never above the whole KL, and closer for larger k; the mode `renormalised` may be above or below."""
    _, teacher, labels, _ = problem()
    of = lambda target: float(plainly(target, divergence=Divergence())[0].terms.divergence)
    whole = of(whole_target(*teacher))
    found = [of(sparse_target(kept_of(teacher, labels, k, 1.0), "tail")) for k in (1, 4, 16, 32)]
    assert found == sorted(found) and found[-1] < whole < 1.1 * found[-1]
    assert found[0] < 0.8 * whole


def test_samples_of_the_tail_are_unbiased():
    """The means of value and gradient over many draws are within their standard error; the tail mode is biased."""
    student, teacher, labels, weights = problem()
    draws, samples = 200, 20
    kept = kept_of(teacher, labels, 4, 1.0, samples=draws * samples)
    divided = lambda x: jnp.moveaxis(x.reshape(B, T, draws, samples), 2, 0)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    @functools.partial(jax.value_and_grad, argnums=0)
    def of_draw(student, sample_ids, sample_log_probs):
        target = sparse_target(kept._replace(sample_ids=sample_ids, sample_log_probs=sample_log_probs), "sampled")
        return total(student, target)

    def total(student, target):
        soft_only = lambda terms, weights, controls: Weighed(0 * weights, weights, {})
        options = {"weigh": soft_only, "divergence": Divergence()}
        return distillation_reference(student, target, labels, weights, {}, **options).total

    student = jax.tree.map(jnp.asarray, student)
    exact, (_, exact_head) = jax.value_and_grad(total)(student, whole_target(*teacher))
    values, (_, heads) = of_draw(student, divided(kept.sample_ids), divided(kept.sample_log_probs))
    error = values.std(ddof=1) / np.sqrt(draws)
    assert 0 < abs(values.mean() - exact) < 3 * error
    assert abs(total(student, sparse_target(kept, "tail")) - exact) > 10 * error  # the bias of the tail mode
    away = np.abs(heads.mean(0) - exact_head) / (heads.std(0, ddof=1) / np.sqrt(draws) + 1e-6)
    assert (away < 3).mean() > 0.98
    assert away.max() < 5


def test_half_precision_keeps_the_divergence():
    """With float16 log-probabilities, normalized again, the divergence is exact up to their rounding."""
    _, teacher, labels, _ = problem()
    kept = kept_of(teacher, labels, 8, 1.0)
    half = kept._replace(log_probs=kept.log_probs.astype(np.float16))
    exact, found = (
        plainly(sparse_target(x, "tail"), divergence=Divergence())[0].terms.divergence for x in (kept, half)
    )
    assert found == pytest.approx(exact, rel=2e-3) and found != exact


def test_samples_support_only_the_forward_kl():
    _, teacher, labels, _ = problem()
    with pytest.raises(ValueError, match="needs samples of the tail"):
        sparse_target(kept_of(teacher, labels, 4, 1.0), "sampled")
