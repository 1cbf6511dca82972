"""Losses of reinforcement learning equal an independent implementation in PyTorch, in value and gradient, on ragged
sequences of which one has no token, with a group of equal rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.objectives.policy import advantages, losses

B, T, GROUP = 64, 50, 8
_draw = np.random.default_rng(5)
LENGTHS = _draw.integers(1, T, B)
MASK = ((np.arange(T) < LENGTHS[:, None]) & (_draw.uniform(size=(B, T)) > 0.2)).astype(np.float32)
MASK[3] = 0
NEW = -np.abs(_draw.normal(0, 1.5, (B, T))).astype(np.float32)
OLD = (NEW + _draw.normal(0, 0.3, NEW.shape)).astype(np.float32)
REWARDS = _draw.integers(0, 2, (B // GROUP, GROUP)).astype(np.float32)
REWARDS[2] = 1.0


def torch_means(loss, how):
    import torch

    m = torch.tensor(MASK, dtype=torch.float64)
    if how == "token_mean":
        return (loss * m).sum() / m.sum()
    there = [i for i in range(B) if MASK[i].sum() > 0]
    if how == "sequence_mean":
        return sum((loss[i] * m[i]).sum() / m[i].sum() for i in there) / len(there)
    return (loss * m).sum() / (len(there) * T)


def torch_advantages(name):
    import torch

    r = torch.tensor(REWARDS, dtype=torch.float64)
    if name == "rloo":
        others = [(group.sum() - group) / (GROUP - 1) for group in r]
        return torch.stack([group - mean for group, mean in zip(r, others, strict=True)]).reshape(B, 1)
    centered = r - r.mean(dim=1, keepdim=True)
    return (centered / (r.std(dim=1, keepdim=True) + 1e-4) if name == "grpo" else centered).reshape(B, 1)


def torch_loss(name, new, old, a):
    import torch

    ratio = torch.exp(new - old)
    if name == "cispo":
        return -torch.clamp(ratio, max=1.3).detach() * a * new
    if name == "plain":
        return -a * new
    high = 0.28 if name == "dapo" else 0.2
    loss = -torch.minimum(ratio * a, torch.clamp(ratio, 0.8, 1 + high) * a)
    return torch.where(a < 0, torch.minimum(loss, -3.0 * a), loss) if name == "dual" else loss


OURS = {
    "clipped": lambda new, a: losses.clipped(new, jnp.asarray(OLD), a, low=0.2, high=0.2),
    "dapo": lambda new, a: losses.clipped(new, jnp.asarray(OLD), a, low=0.2, high=0.28),
    "dual": lambda new, a: losses.clipped(new, jnp.asarray(OLD), a, low=0.2, high=0.2, dual=3.0),
    "cispo": lambda new, a: losses.weighted(new, jnp.asarray(OLD), a, high=0.3),
    "plain": lambda new, a: losses.plain(new, a),
}


def check(value, gradient, expected, expected_gradient):
    assert float(value) == pytest.approx(expected.item(), abs=2e-6 * max(1, abs(expected.item())))
    gradient, reference = np.asarray(gradient), expected_gradient.numpy()
    error = np.linalg.norm(gradient - reference) / np.linalg.norm(reference)
    assert error < 1e-5, f"relative error {error:.1e}"
    assert (gradient[MASK == 0] == 0).all(), "tokens that the model did not write"


@pytest.mark.oracles
@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "fixed"])
@pytest.mark.parametrize("name", OURS)
def test_token_losses_equal_torch(name, how):
    import torch

    kind = {"plain": "rloo", "clipped": "dr_grpo"}.get(name, "grpo")
    ours = (
        advantages.leave_one_out(jnp.asarray(REWARDS))
        if kind == "rloo"
        else advantages.of_groups(jnp.asarray(REWARDS), scale=kind == "grpo")
    )
    assert (np.asarray(ours)[2] == 0).all(), "a group of equal rewards"
    a = jnp.broadcast_to(ours.reshape(B, 1), (B, T))
    loss = lambda new: losses.normalized(OURS[name](new, a), jnp.asarray(MASK), how, T)
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(NEW))
    new = torch.tensor(NEW, dtype=torch.float64, requires_grad=True)
    old = torch.tensor(OLD, dtype=torch.float64)
    expected = torch_means(torch_loss(name, new, old, torch_advantages(kind)), how)
    expected.backward()
    check(value, gradient, expected, new.grad)


@pytest.mark.oracles
def test_one_ratio_per_sequence_equals_torch():
    import torch

    a = advantages.of_groups(jnp.asarray(REWARDS), scale=True).reshape(B)
    m = jnp.asarray(MASK)
    there = (MASK.sum(axis=1) > 0).astype(np.float32)
    ours = lambda new: (
        jnp.sum(losses.clipped_sequences(new, jnp.asarray(OLD), a, m, low=3e-2, high=4e-2) * jnp.asarray(there))
        / jnp.float32(there.sum())
    )
    value, gradient = jax.jit(jax.value_and_grad(ours))(jnp.asarray(NEW))
    new = torch.tensor(NEW, dtype=torch.float64, requires_grad=True)
    ratios = torch.tensor(OLD, dtype=torch.float64)
    found = []
    for i in np.flatnonzero(there):
        at = torch.tensor(MASK[i] > 0)
        s, own = torch.exp((new[i] - ratios[i])[at].mean()), torch_advantages("grpo")[i, 0]
        found.append(-torch.minimum(s * own, torch.clamp(s, 0.97, 1.04) * own))
    expected = sum(found) / len(found)
    expected.backward()
    check(value, gradient, expected, new.grad)


@pytest.mark.oracles
def test_values_and_divergences_equal_torch():
    import torch

    returns, values = (_draw.normal(size=(B, T)).astype(np.float32) for _ in range(2))
    was = (values + _draw.normal(0, 0.3, values.shape)).astype(np.float32)
    tensor = lambda x, **more: torch.tensor(x, dtype=torch.float64, **more)
    ours = lambda v: losses.normalized(
        losses.value_loss(v, jnp.asarray(was), jnp.asarray(returns), clip=0.2), jnp.asarray(MASK), "token_mean"
    )
    v = tensor(values, requires_grad=True)
    limited = torch.clamp(v, tensor(was) - 0.2, tensor(was) + 0.2)
    expected = torch_means(
        0.5 * torch.maximum((v - tensor(returns)) ** 2, (limited - tensor(returns)) ** 2), "token_mean"
    )
    expected.backward()
    check(*jax.jit(jax.value_and_grad(ours))(jnp.asarray(values)), expected, v.grad)
    for kind in ("k1", "k2", "k3"):
        ours = lambda new, kind=kind: losses.normalized(
            losses.divergence(new, jnp.asarray(OLD), kind), jnp.asarray(MASK), "sequence_mean"
        )
        value, gradient = jax.jit(jax.value_and_grad(ours))(jnp.asarray(NEW))
        new = tensor(NEW, requires_grad=True)
        d = tensor(OLD) - new
        torch_means({"k1": -d, "k2": 0.5 * d**2, "k3": 0.5 * d**2}[kind], "sequence_mean").backward()
        expected = torch_means({"k1": -d, "k2": 0.5 * d**2, "k3": torch.exp(d) - d - 1}[kind], "sequence_mean")
        check(value, gradient, expected, new.grad)


@pytest.mark.oracles
def test_bradley_terry_equals_torch():
    import torch

    chosen, rejected = NEW[:, 0], OLD[:, 1]
    ours = lambda c: jnp.mean(losses.bradley_terry(c, jnp.asarray(rejected), margin=0.5))
    value, gradient = jax.jit(jax.value_and_grad(ours))(jnp.asarray(chosen))
    c, r = torch.tensor(chosen, dtype=torch.float64, requires_grad=True), torch.tensor(rejected, dtype=torch.float64)
    expected = (-torch.nn.functional.logsigmoid(c - r - 0.5) + 0.01 * (c + r) ** 2).mean()
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), abs=2e-6)
    np.testing.assert_allclose(gradient, c.grad.numpy(), rtol=1e-5, atol=1e-8)


def test_advantages_of_a_run_made_by_hand():
    """Two turns with an observation between them: the second turn's value and advantage are carried across it."""
    rewards = jnp.asarray([[0.0, 0.0, 9.0, 1.0]])
    values = jnp.asarray([[0.5, 0.25, 7.0, 0.75]])
    mask = jnp.asarray([[1.0, 1.0, 0.0, 1.0]])
    found, returns = advantages.generalized(rewards, values, mask, gamma=0.5, decay=0.5)
    last = 1.0 - 0.75
    second = 0.5 * 0.75 - 0.25 + 0.25 * last
    first = 0.5 * 0.25 - 0.5 + 0.25 * second
    np.testing.assert_allclose(found, [[first, second, 0, last]], rtol=1e-6)
    np.testing.assert_allclose(returns, [[first + 0.5, second + 0.25, 0, 1.0]], rtol=1e-6)
    white = np.asarray(advantages.whitened(found, mask))[0][[0, 1, 3]]
    assert white.mean() == pytest.approx(0, abs=1e-6) and white.std(ddof=1) == pytest.approx(1, rel=1e-4)


def test_sequences_in_one_row_are_estimated_apart():
    rewards, values = (jnp.asarray(_draw.normal(size=(1, 9)).astype(np.float32)) for _ in range(2))
    mask = jnp.asarray([[0, 1, 1, 0, 1, 0, 1, 1, 0]], jnp.float32)
    ends = jnp.asarray([[False] * 4 + [True] + [False] * 2 + [True, False]])
    found = advantages.generalized(rewards, values, mask, gamma=0.9, decay=0.8, ends=ends)
    alone = [
        advantages.generalized(rewards[:, here], values[:, here], mask[:, here], gamma=0.9, decay=0.8)
        for here in (slice(0, 5), slice(5, 9))
    ]
    for i in (0, 1):
        np.testing.assert_allclose(found[i], np.concatenate([part[i] for part in alone], axis=1), rtol=1e-6)
