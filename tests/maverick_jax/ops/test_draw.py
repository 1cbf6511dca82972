"""Draws follow the rules of their rows, as the sorting twin in NumPy does, and no row depends on another."""

import jax
import jax.numpy as jnp
import numpy as np

from maverick_jax.inference.engine.one_at_a_time import changed_logits, drawn
from maverick_jax.inference.sampling import Sampling
from maverick_jax.ops.draw import DrawRules, Written, _restricted, draw

V = 300
PLAIN = Sampling()
ALL = Sampling(0.7, 30, 0.8, 0.02, 1.3, 0.4, 0.2, {3: 2.0, 5: -100.0})
SETTINGS = [PLAIN, Sampling(0.0), Sampling(1.2, top_k=7), Sampling(0.5, top_p=0.6), Sampling(1.0, min_p=0.1), ALL,
            Sampling(0.0, repetition_penalty=2.0, logit_bias={9: 50.0}),
            Sampling(1.0, top_k=V + 5, top_p=0.999)]  # fmt: skip


def rules_of(settings: list[Sampling]) -> DrawRules:
    column = lambda name, dtype=np.float32: jnp.array([getattr(s, name) for s in settings], dtype)
    bias = np.zeros((len(settings), V), np.float32)
    for row, s in zip(bias, settings, strict=True):
        for token, value in s.logit_bias.items():
            row[token] = value
    return DrawRules(
        temperature=column("temperature"),
        top_k=column("top_k", np.int32),
        top_p=column("top_p"),
        min_p=column("min_p"),
        repetition=column("repetition_penalty"),
        presence=column("presence_penalty"),
        frequency=column("frequency_penalty"),
        seed=jnp.arange(len(settings), dtype=np.uint32),
        bias=jnp.asarray(bias),
    )


def texts(rows: int, seed: int = 0) -> tuple[np.ndarray, list[list[int]], list[list[int]], Written]:
    """Random logits, prompts and answers, and the `Written` of these texts, which the op reads."""
    rng = np.random.default_rng(seed)
    prompts, answers = ([rng.integers(0, V, n).tolist() for n in rng.integers(1, 9, rows)] for _ in range(2))
    prompt, counts = np.zeros((rows, V), bool), np.zeros((rows, V), np.int32)
    for i in range(rows):
        prompt[i, prompts[i]] = True
        np.add.at(counts[i], answers[i], 1)
    logits = rng.normal(0, 3, (rows, V)).astype(np.float32)
    return (
        logits,
        prompts,
        answers,
        Written(jnp.asarray(prompt), jnp.asarray(counts), jnp.array(list(map(len, answers)))),
    )


def test_each_row_draws_as_the_twin_does():
    for seed in range(5):
        logits, prompts, answers, written = texts(len(SETTINGS), seed)
        found = jax.jit(draw)(jnp.asarray(logits), rules_of(SETTINGS), written).tolist()
        rows = zip(logits, SETTINGS, prompts, answers, strict=True)
        changed = [(changed_logits(row, s, prompt, answer), s, len(answer)) for row, s, prompt, answer in rows]
        assert found == [drawn(row, s, seed, length) for seed, (row, s, length) in enumerate(changed)]


def test_a_row_draws_the_same_at_any_place_and_beside_any_other():
    logits, _, _, written = texts(len(SETTINGS))
    rules, order = rules_of(SETTINGS), np.array([5, 2, 0, 7, 1, 3, 6, 4])
    moved = jax.tree.map(lambda x: x[order], (jnp.asarray(logits), rules, written))
    whole = np.asarray(jax.jit(draw)(jnp.asarray(logits), rules, written))
    np.testing.assert_array_equal(whole[order], jax.jit(draw)(*moved))
    for i in range(len(SETTINGS)):
        alone = jax.tree.map(lambda x, i=i: x[i : i + 1], (jnp.asarray(logits), rules, written))
        assert int(jax.jit(draw)(*alone)[0]) == whole[i]


def kept(probabilities: list[float], **settings) -> set[int]:
    logits = jnp.log(jnp.array([probabilities + [1e-30] * (V - len(probabilities))], jnp.float32))
    found = np.asarray(jax.jit(_restricted)(logits, rules_of([Sampling(**settings)])))[0]
    return set(np.flatnonzero(np.isfinite(found)).tolist()) & set(range(len(probabilities)))


def test_the_rules_exclude_what_they_say():
    """Probabilities 1/2, 1/4, 1/8, 1/8 and their sums are exact; equal logits stay or go together."""
    half = [0.5, 0.25, 0.125, 0.125]
    assert kept(half, top_p=0.5) == {0} and kept(half, top_p=0.75) == {0, 1}
    assert kept(half, top_p=0.51) == {0, 1} and kept(half, top_p=0.76) == {0, 1, 2, 3}
    assert kept(half, top_k=1) == {0} and kept(half, top_k=2) == {0, 1} and kept(half, top_k=3) == {0, 1, 2, 3}
    assert kept(half, min_p=0.4) == {0, 1} and kept(half, min_p=0.6) == {0}
    assert kept(half, top_k=2, top_p=0.5) == {0} and kept(half) == {0, 1, 2, 3}
    assert kept([0.125, 0.25, 0.5, 0.125], top_p=0.75) == {1, 2}


def test_shares_of_draws_follow_the_distribution():
    rows, shares = 4000, np.array([0.5, 0.25, 0.15, 0.1])
    rules = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], (rows, *x.shape[1:])), rules_of([PLAIN]))
    rules = DrawRules(**(vars(rules) | {"bias": rules.bias[:, :4], "seed": jnp.arange(rows, dtype=jnp.uint32)}))
    written = Written(jnp.zeros((rows, 4), bool), jnp.zeros((rows, 4), jnp.int32), jnp.zeros(rows, jnp.int32))
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(shares, jnp.float32)), (rows, 4))
    counts = np.bincount(np.asarray(jax.jit(draw)(logits, rules, written)), minlength=4)
    np.testing.assert_allclose(counts / rows, shares, atol=0.03)
