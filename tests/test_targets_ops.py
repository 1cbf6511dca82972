"""Top k, tail and samples of a vocabulary in parts, and the loss on them, against plain forms on whole logits."""

import functools

import jax
import numpy as np
import pytest

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
def test_top_k_in_parts_equals_whole_logits(k, temperature, chunk, sizes, mesh_of):
    arguments = inputs()
    expected = top_k_reference(*arguments, k=k, temperature=temperature)
    found = tops(sizes, mesh_of, arguments, k=k, temperature=temperature, chunk=chunk)
    for name, a, b in zip(found._fields, found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5, err_msg=name)
    assert len(np.unique(found.sample_ids)) > 10
    assert not (found.sample_ids[..., None] == found.ids[..., None, :]).any()  # none of the top k is drawn


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
    """Each token of the tail as often as its mass says."""
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
