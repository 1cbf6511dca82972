"""Direct preference optimization of a small Llama 4 equals a PyTorch loop with transformers' model and TRL's formula:
the log-probabilities of both sides, which lie packed in one row here and alone there, and twenty updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maverick_jax.model.inputs import Inputs
from maverick_jax.ops.label_log_probs import label_log_probs
from tests.helpers import tiny
from tests.helpers.pair_rows import pair_batch
from tests.parity.oracle import case, torch_model
from train.objectives import Preference
from train.objectives.base import Context
from train.objectives.preference.reference import MODEL

BETA = 0.5
OBJECTIVE = Preference.model_validate({"kind": "preference", "pair_loss": {"kind": "sigmoid", "beta": BETA}})


@functools.cache
def batches():
    """Two batches of four pairs; the first tokens of each side are a prompt."""
    found = [pair_batch(case("maverick").config, step=i, rows=4, length=40) for i in (0, 1)]
    for batch in found:
        labels = batch["sides"] > 0
        batch["loss_weights"] = (labels & (batch["positions"] >= 2)).astype(np.float32)
    return found


def torch_sides(model, batch, row: int):
    """(log-probabilities of the labels, their weights) of both sides, each read alone."""
    import torch

    found = []
    for segment in (1, 2):
        at = batch["segment_ids"][0, row] == segment
        ids = torch.from_numpy(batch["tokens"][0, row][at].astype(np.int64))[None]
        log_probs = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
        found.append((log_probs.gather(1, ids[0, 1:, None])[:, 0], batch["loss_weights"][0, row][at][:-1]))
    return found


def torch_sums(model, batch):
    """[pairs, 2]: the log-probability of each side's completion."""
    import torch

    sums = [[torch.sum(x * torch.from_numpy(w)) for x, w in torch_sides(model, batch, row)] for row in range(4)]
    return torch.stack([torch.stack(pair) for pair in sums])


@pytest.mark.oracles
def test_log_probabilities_of_packed_sides_equal_transformers():
    c = case("maverick")
    batch = batches()[0]

    @jax.jit
    def log_probs(model, batch):
        hidden, _ = model.hidden(Inputs.of(batch))
        return label_log_probs(hidden, model.stored_output_weight(), batch["labels"], rules=model.rules)

    with jax.set_mesh(c.ours.embed[...].sharding.mesh):
        found = np.asarray(log_probs(c.ours, {name: x[0] for name, x in tiny.placed(batch).items()}))
    for row in range(4):
        for segment, (expected, _) in enumerate(torch_sides(c.torch, batch, row), start=1):
            at = np.flatnonzero(batch["segment_ids"][0, row] == segment)[:-1]
            np.testing.assert_allclose(found[row, at], expected.detach().numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.oracles
def test_twenty_updates_follow_torch():
    import torch

    c = case("maverick")
    settings = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.1}
    theirs, frozen = (torch_model(c.config, c.parameters) for _ in range(2))
    torch_optimizer = torch.optim.AdamW(theirs.parameters(), **settings)
    optimizer = optax.adamw(3e-4, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.1)

    @jax.jit
    def step(model, state, batch, reference):
        context = Context(jnp.zeros((), jnp.int32), {}, {MODEL: reference})
        totals, first = OBJECTIVE.totals(batch), {name: x[0] for name, x in batch.items()}
        loss = lambda model: OBJECTIVE.loss(model, first, totals, context)
        (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(model)
        with jax.numpy_dtype_promotion("standard"):  # Adam's count is an integer to optax
            updates, state = optimizer.update(gradient, state, model)
            return optax.apply_updates(model, updates), state, value, sums["margin"] / totals["pairs"]

    model, found, expected = c.ours, [], []
    with jax.set_mesh(model.embed[...].sharding.mesh):
        state = jax.jit(optimizer.init)(model)
        for i in range(20):
            batch = batches()[i % 2]
            model, state, loss, margin = step(model, state, tiny.placed(batch), c.ours)
            found.append((float(loss), float(margin)))
            with torch.no_grad():
                reference = torch_sums(frozen, batch)
            change = torch_sums(theirs, batch) - reference
            gap = change[:, 0] - change[:, 1]
            torch_loss = -torch.nn.functional.logsigmoid(BETA * gap).mean()
            torch_optimizer.zero_grad()
            torch_loss.backward()
            torch_optimizer.step()
            expected.append((torch_loss.item(), gap.mean().item()))
    losses = [loss for loss, _ in expected]
    assert found[0] == pytest.approx((np.log(2), 0), abs=1e-5)
    assert losses[-1] < losses[0] - 0.2, "twenty updates should learn something"
    np.testing.assert_allclose([loss for loss, _ in found], losses, atol=1e-3, rtol=0)
    np.testing.assert_allclose(*([margin for _, margin in pairs] for pairs in (found, expected)), atol=1e-2, rtol=1e-3)
