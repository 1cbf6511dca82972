"""Every loss of pairs equals an independent implementation in PyTorch, in value and gradient, on ragged sides with a
pair of which no token counts, and beside answers to other prompts. Tokens outside of sides get no gradient at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import tiny
from tests.helpers.pair_rows import pair_batch
from train.objectives import Preference

BATCH = {
    name: x[0] for name, x in pair_batch(tiny.model_config(), rows=64, length=100, blocks=2, mismatched=True).items()
}
_draw = np.random.default_rng(3)
OWN = -np.abs(_draw.normal(0, 1.5, (64, 100))).astype(np.float32) - np.float32(0.05)
THEIRS = (OWN + _draw.normal(-0.1, 0.7, OWN.shape)).astype(np.float32)
EMPTY = 63
"""The row with the pair of which no token counts."""


def in_jax(section: dict, theirs):
    """(value, gradient by the model's log-probabilities) of the mean over pairs, or sides, of the loss, with the mean
    cross-entropy of chosen tokens."""
    objective = Preference.model_validate(section)
    batch = {name: x[0] for name, x in tiny.placed({name: x[None] for name, x in BATCH.items()}).items()}
    totals = jax.jit(objective.totals)({name: x[None] for name, x in batch.items()})
    other = None if theirs is None else jnp.asarray(theirs)

    def loss(own):
        total, sums = objective.of_log_probs(batch, own, other)
        units = totals["sides"] if objective.pair_loss.of_sides else totals["pairs"]
        return total / units + (objective.nll + objective.pair_loss.nll) * sums["nll"] / totals["chosen"]

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(OWN))
    return float(value), np.asarray(gradient)


class Twin:
    """The losses in PyTorch, pair by pair and token by token, in float64."""

    def __init__(self, theirs):
        import torch

        self.torch, self.F = torch, torch.nn.functional
        self.own = torch.tensor(OWN, dtype=torch.float64, requires_grad=True)
        self.theirs = torch.zeros_like(self.own) if theirs is None else torch.tensor(theirs, dtype=torch.float64)

    def sides(self, row: int, factor=lambda at: 1.0):
        """Per side: sums of weighted log-probabilities by model and reference, and the sum of weights."""
        found = []
        for side in (1, 2):
            places = [t for t in range(100) if BATCH["sides"][row, t] == side]
            weight = {t: float(BATCH["loss_weights"][row, t]) for t in places}
            total = lambda x, w=weight: sum((w[t] * factor((row, t)) * x[row, t] for t in w), self.torch.zeros(()))
            found.append((total(self.own), total(self.theirs), sum(weight.values())))
        return found

    def pairs(self, **options):
        return [self.sides(row, **options) for row in range(64) if row != EMPTY]

    def divergence(self):
        """As TRL's KTOTrainer has it: the mean over answers to other prompts, at least 0, without gradient."""
        changes = []
        for row in range(64):
            weight = np.where(BATCH["sides"][row] == 3, BATCH["loss_weights"][row], 0)
            changes.append((self.torch.tensor(weight, dtype=self.torch.float64) * (self.own - self.theirs)[row]).sum())
        return self.torch.stack(changes).mean().clamp(min=0).detach()

    def gap(self, pair, mean=False):
        (c, cr, nc), (r, rr, nr) = pair
        return (c - cr) / nc - (r - rr) / nr if mean else (c - cr) - (r - rr)

    def nll(self):
        chosen = [pair[0] for pair in self.pairs()]
        return -sum(c for c, _, _ in chosen) / sum(n for _, _, n in chosen)


def _sigmoid(t, noise=0.0, mean=False, beta=0.1):
    F = t.F
    gaps = [beta * t.gap(pair, mean) for pair in t.pairs()]
    return [-(1 - noise) * F.logsigmoid(g) - noise * F.logsigmoid(-g) for g in gaps]


def _robust(t):
    gaps = [0.1 * t.gap(pair) for pair in t.pairs()]
    return [(-0.8 * t.F.logsigmoid(g) + 0.2 * t.F.logsigmoid(-g)) / 0.6 for g in gaps]


def _dmpo(t, gamma):
    def factor(at):
        k, left = int(BATCH["pair_turns"][at]), int(BATCH["pair_turns_left"][at])
        T = k + left + 1
        return (T - k) / T if gamma == 1 else gamma**k * (1 - gamma ** (T - k)) / (1 - gamma**T)

    return [-t.F.logsigmoid(0.1 * t.gap(pair)) for pair in t.pairs(factor=factor)]


def _simpo(t):
    return [-t.F.logsigmoid(2.0 * (c / nc - r / nr - 1.5 / 2.0)) for (c, _, nc), (r, _, nr) in t.pairs()]


def _orpo(t):
    log, exp = t.torch.log, t.torch.exp
    odds = lambda a: a - log(1 - exp(a))
    return [-0.1 * t.F.logsigmoid(odds(c / nc) - odds(r / nr)) for (c, _, nc), (r, _, nr) in t.pairs()]


def _apo_zero(t):
    sides = [(1.0 - t.torch.sigmoid(0.1 * (c - cr)), 0.5 * t.torch.sigmoid(0.1 * (r - rr))) for (c, cr, _), (r, rr, _)
             in t.pairs()]  # fmt: skip
    return [value for pair in sides for value in pair]


def _kto(t):
    z = t.divergence()
    assert z > 0.05, "the estimate must matter"
    sides = [(0.8 * (1 - t.torch.sigmoid(0.1 * (c - cr - z))), 1.5 * (1 - t.torch.sigmoid(0.1 * (z - (r - rr)))))
             for (c, cr, _), (r, rr, _) in t.pairs()]  # fmt: skip
    return [value for pair in sides for value in pair]


def _desensitised(t):
    pairs = t.pairs(factor=lambda at: 0.3 if BATCH["pair_tail"][at] else 1.0)
    return [-t.F.logsigmoid(0.1 * t.gap(pair)) for pair in pairs]


CASES = {
    "sigmoid": ({"kind": "sigmoid"}, _sigmoid),
    "smoothed": ({"kind": "sigmoid", "label_smoothing": 0.2}, lambda t: _sigmoid(t, 0.2)),
    "sigmoid_norm": ({"kind": "sigmoid_norm", "beta": 2.0}, lambda t: _sigmoid(t, mean=True, beta=2.0)),
    "hinge": ({"kind": "hinge"}, lambda t: [t.torch.relu(1 - 0.1 * t.gap(pair)) for pair in t.pairs()]),
    "robust": ({"kind": "robust", "noise": 0.2}, _robust),
    "ipo": ({"kind": "ipo"}, lambda t: [(t.gap(pair, True) - 5) ** 2 for pair in t.pairs()]),
    "ipo_sum": ({"kind": "ipo", "length": "sum"}, lambda t: [(t.gap(pair) - 5) ** 2 for pair in t.pairs()]),
    "dmpo": ({"kind": "dmpo", "gamma": 0.7}, lambda t: _dmpo(t, 0.7)),
    "dmpo_1": ({"kind": "dmpo", "gamma": 1.0}, lambda t: _dmpo(t, 1)),
    "simpo": ({"kind": "simpo", "gamma": 1.5}, _simpo),
    "orpo": ({"kind": "orpo"}, _orpo),
    "apo_zero": ({"kind": "apo_zero", "rejected_weight": 0.5}, _apo_zero),
    "kto": ({"kind": "kto", "chosen_weight": 0.8, "rejected_weight": 1.5}, _kto),
}


@pytest.mark.oracles
@pytest.mark.parametrize("case", [*CASES, "nll", "tail"])
def test_value_and_gradient_equal_torch(case, mesh_of):
    section, values = CASES.get(case, ({"kind": "sigmoid"}, _desensitised if case == "tail" else _sigmoid))
    theirs = None if case in ("simpo", "orpo") else THEIRS
    more = {"nll": {"nll": 0.2}, "tail": {"tail_weight": 0.3}}.get(case, {})
    with mesh_of(data=1):
        value, gradient = in_jax({"kind": "preference", "pair_loss": section, **more}, theirs)
    twin = Twin(theirs)
    found = values(twin)
    expected = sum(found) / len(found) + {"nll": 0.2, "orpo": 1.0}.get(case, 0.0) * twin.nll()
    expected.backward()
    expected_gradient = twin.own.grad.numpy()
    assert value == pytest.approx(expected.item(), abs=2e-6 * max(1, abs(expected.item())))
    error = np.linalg.norm(gradient - expected_gradient) / np.linalg.norm(expected_gradient)
    assert error < 1e-5, f"relative error {error:.1e}"
    outside = (BATCH["loss_weights"] == 0) | (BATCH["sides"] == 3) | (np.arange(64) == EMPTY)[:, None]
    assert (gradient[outside] == 0).all()
