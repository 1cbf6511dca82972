"""Reward models: the loss equals PyTorch's, and neither accumulation, packing, meshes nor padding change an update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maverick_jax.errors import InputError
from maverick_jax.model.heads import Judgements
from maverick_jax.network import Balance
from maverick_jax.param import normal, param
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny
from tests.helpers.pair_rows import apart, pair_batch
from train.objectives import Reward
from train.objectives.base import Context
from train.objectives.reward import LABELS, NO_LABEL, calibration_error, calibration_sums
from train.step import accumulate

CONFIG = tiny.model_config(
    balance=Balance(kind="none", z_loss=0.0), num_hidden_layers=2, no_rope_layer_interval=2, attention_chunk_size=16
)


def reward_batch(**options) -> dict[str, np.ndarray]:
    """Rows of pairs whose sides end with a labelled turn; the first row's pair lacks its rejected side."""
    batch = pair_batch(CONFIG, **options)
    rng = np.random.default_rng(11)
    flat = {name: x.reshape(-1, x.shape[-1]) for name, x in batch.items()}
    ends = np.zeros_like(flat["tokens"])
    labels = np.full(ends.shape, NO_LABEL, np.uint8)
    for row, segments in enumerate(flat["segment_ids"]):
        for number in range(1, segments.max() + 1):
            last = np.flatnonzero(segments == number)[-1]
            ends[row, last] = 0 if (row, number) == (0, 2) else number
            labels[row, last] = rng.integers(len(LABELS))
            labels[row, last - 2] = 0
    shape = batch["tokens"].shape
    return batch | {"side_ends": ends.reshape(shape), "turn_labels": labels.reshape(shape)}


def heads() -> dict[str, nnx.Param]:
    declared = Reward().heads(CONFIG, {})
    init = lambda h: param(nnx.Rngs(params=5), h.shape, h.axes, normal(0.3), tiny.RULES, "float32")
    return jax.jit(lambda: {head.name: init(head) for head in declared})()


def result(batch, objective: Reward | None = None):
    """(sums with the loss, gradients of model and heads, metrics) for a batch [A, b, T]."""
    objective = objective or Reward()
    context = Context(jnp.zeros((), jnp.int32), {}, {})

    @jax.jit
    def run(trained, batch):
        totals = objective.totals(batch)

        def loss(trained, microbatch, totals):
            model, heads = trained
            within = Context(context.step, {}, {}, heads)
            value, sums = objective.loss(model, microbatch, totals, within)
            return value, sums | {"total": value}

        sums, grads = accumulate(loss, trained, batch, totals)
        return sums, grads, objective.metrics(trained[0], sums, totals, context)

    return jax.device_get(run((tiny.on_mesh(tiny.model_of(CONFIG, 3)), heads()), tiny.placed(batch)))


def check_same(one, other, tolerance=2e-6):
    tiny.check_same_of_pairs(
        one, other, ("loss", "margin", "accuracy", "turn_loss", "turn_accuracy", "pairs"), tolerance
    )


@pytest.mark.oracles
def test_the_loss_equals_pytorch():
    """On ragged rows with a pair that lacks a side: values to 2e-6, gradients to 1e-5."""
    import torch

    batch = {name: x[0] for name, x in reward_batch(rows=16, length=40).items()}
    rng = np.random.default_rng(2)
    values, logits = rng.normal(0, 2, (16, 40)).astype(np.float32), rng.normal(0, 2, (16, 40, 4)).astype(np.float32)
    objective = Reward(margin=0.5, center=0.01, turns=0.5)

    def ours(values, logits):
        placed = {name: jnp.asarray(x) for name, x in batch.items()}
        sums = objective.of_judgements(Judgements(values, logits), placed)
        totals = objective.totals({name: x[None] for name, x in placed.items()})
        return sums["pair_loss"] / totals["pairs"] + objective.turns * sums["turn_loss"] / totals["turns"]

    with jax.set_mesh(single_device_mesh()):
        value, grads = jax.jit(jax.value_and_grad(ours, (0, 1)))(jnp.asarray(values), jnp.asarray(logits))
    v, z = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (values, logits))
    pairs, turns = [], []
    for row in range(16):
        ends = {int(batch["side_ends"][row, t]): v[row, t] for t in range(40) if batch["side_ends"][row, t]}
        if {1, 2} <= ends.keys():
            pairs.append(-torch.nn.functional.logsigmoid(ends[1] - ends[2] - 0.5) + 0.01 * (ends[1] + ends[2]) ** 2)
        for t in range(40):
            if (label := int(batch["turn_labels"][row, t])) != NO_LABEL:
                wanted = torch.nn.functional.one_hot(torch.tensor(label), 4).double()
                entropy = torch.nn.functional.binary_cross_entropy_with_logits(z[row, t], wanted, reduction="sum")
                turns.append(entropy)
    expected = torch.stack(pairs).mean() + 0.5 * torch.stack(turns).mean()
    expected.backward()
    assert len(pairs) == 15 and float(value) == pytest.approx(expected.item(), rel=2e-6)
    for found, twin in zip(grads, (v, z), strict=True):
        np.testing.assert_allclose(found, twin.grad.numpy(), rtol=1e-5, atol=1e-8)
    assert (np.asarray(grads[0])[batch["side_ends"] == 0] == 0).all()


def test_accumulation_and_packing_do_not_change_the_update(mesh_of):
    batch = reward_batch(length=48, blocks=2)
    rows = {name: x[0] for name, x in batch.items()}
    alone = {name: x[None] for name, x in apart(rows).items()}
    for row in range(alone["tokens"].shape[1]):  # in a row of its own a pair is the first
        ends, second = alone["side_ends"][0, row], alone["segment_ids"][0, row].max() > 2
        ends[ends > 0] -= 2 * second
    with mesh_of(data=1):
        whole = result(batch)
        check_same(result({name: x.reshape(4, 4, -1) for name, x in alone.items()}), whole)
    assert whole[2]["pairs"] == 15


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"context": 2, "data": 4}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_meshes_do_not_change_the_update(sizes, mesh_of):
    batch = reward_batch(length=64)
    if "context" in sizes:
        batch = {
            name: np.where(np.arange(64) < 16, x, np.full_like(x, 255 if name == "turn_labels" else 0))
            for name, x in batch.items()
        }
    with mesh_of(data=1):
        whole = result(batch)
    with mesh_of(**sizes):
        check_same(result(batch), whole, tolerance=1e-5)


def test_the_calibration_error_is_that_of_its_bins():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 200).astype(np.float32)
    right, there = rng.uniform(size=200) < confidence**2, rng.uniform(size=200) < 0.9
    found = calibration_error(
        np.asarray(calibration_sums(jnp.asarray(confidence), jnp.asarray(right), jnp.asarray(there)))
    )
    total = 0.0
    for low in np.arange(0.5, 1, 0.05):
        inside = there & (confidence >= low - 1e-9) & (confidence < low + 0.05 - 1e-9)
        total += abs(confidence[inside].sum() - right[inside].sum())
    assert found == pytest.approx(total / there.sum(), abs=1e-5)


def test_sources_without_pairs_are_refused():
    with pytest.raises(InputError, match="no pairs"):
        Reward().check_data({"runs": {"documents": 3}})
    with pytest.raises(InputError, match="no pairs"):
        Reward().check_data({"x": {"pairs": {"pairs": 4, "unpaired": 4}}})
    Reward().check_data({"x": {"pairs": {"pairs": 4, "unpaired": 1}}})
