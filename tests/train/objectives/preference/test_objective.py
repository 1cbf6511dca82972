"""Preference optimization: step 0, and what does not change the result: meshes, accumulation, packing, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.network import Balance
from tests.helpers import tiny
from tests.helpers.pair_rows import apart, pair_batch
from train.objectives import Preference
from train.objectives.base import Context
from train.objectives.preference.losses import LOSSES
from train.objectives.preference.reference import MODEL
from train.step import accumulate

CONFIG = tiny.model_config(
    balance=Balance(kind="none", z_loss=0.0), num_hidden_layers=2, no_rope_layer_interval=2, attention_chunk_size=16
)
"""A config without balance terms, which depend on the whole microbatch and not on single pairs."""


OTHER_MESHES = ({"data": 4, "tensor": 2}, {"fsdp": 2, "expert": 4})


def objective_of(kind: str, **more) -> Preference:
    return Preference.model_validate({"pair_loss": {"kind": kind}, **more})


def result(objective: Preference, batch, seed: int = 0, reference: int = 1):
    """(sums with the loss, gradients, metrics) of a model compared with another one, for a batch [A, b, T]."""
    context = Context(jnp.zeros((), jnp.int32), {}, {MODEL: tiny.on_mesh(tiny.model_of(CONFIG, reference))})
    model = tiny.on_mesh(tiny.model_of(CONFIG, seed))

    @jax.jit
    def run(model, batch):
        totals = objective.totals(batch) | objective.survey(model, batch, context)

        def loss(model, microbatch, totals):
            value, sums = objective.loss(model, microbatch, totals, context)
            return value, sums | {"total": value}

        sums, grads = accumulate(loss, model, batch, totals)
        return sums, grads, objective.metrics(model, sums, totals, context)

    return jax.device_get(run(model, tiny.placed(batch)))


def check_same(one, other, tolerance=2e-6):
    tiny.check_same_of_pairs(one, other, ("loss", "margin", "accuracy", "chosen_log_prob", "nll", "pairs"), tolerance)


@pytest.mark.parametrize(("kind", "loss"), [("sigmoid", np.log(2)), ("sigmoid_norm", np.log(2)), ("apo_zero", 0.5)])
def test_a_model_equal_to_its_reference_has_the_loss_of_indifference(kind, loss, mesh_of):
    with mesh_of(data=1):
        found = result(objective_of(kind), pair_batch(CONFIG), reference=0)[2]
    assert float(found["loss"]) == pytest.approx(loss, abs=1e-6)
    assert float(found["margin"]) == pytest.approx(0, abs=1e-5)
    assert found["route_change"].tolist() == [0]


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [2, 4])
def test_the_divergence_of_kto_is_that_of_the_whole_batch(blocks, mesh_of):
    of = lambda kind: Preference.model_validate({"pair_loss": {"kind": kind, "beta": 5.0}})
    objective = of("kto")
    batch = pair_batch(CONFIG, length=24 * blocks, blocks=blocks, mismatched=True)
    alone = {name: x[None] for name, x in apart({name: x[0] for name, x in batch.items()}).items()}
    with mesh_of(data=1):
        whole = result(objective, batch)
        found = [result(objective, {name: x.reshape(4, 2, -1) for name, x in batch.items()}), result(objective, alone)]
        plain = result(of("apo_zero"), batch)
    with mesh_of(data=4, tensor=2):
        found.append(result(objective, batch))
    assert whole[2]["divergence"] > 1e-3 and whole[2]["loss"] != pytest.approx(plain[2]["loss"], abs=1e-4)
    for other in found:
        assert other[2]["divergence"] == pytest.approx(whole[2]["divergence"], abs=1e-5)  # of sums of tens of nats
        check_same(other, whole, tolerance=1e-5)


@pytest.mark.parametrize(
    "kind", ["sigmoid", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("orpo", "apo_zero"))]
)
def test_accumulation_and_packing_do_not_change_the_update(kind, mesh_of):
    objective = objective_of(kind, nll=0.2)
    batch = pair_batch(CONFIG, length=48, blocks=2)
    alone = {name: x[None] for name, x in apart({name: x[0] for name, x in batch.items()}).items()}
    with mesh_of(data=1):
        whole = result(objective, batch)
        check_same(result(objective, {name: x.reshape(4, 2, -1) for name, x in batch.items()}), whole)
        check_same(result(objective, alone), whole)
    assert whole[2]["pairs"] == 15, "the pair of which no token counts is left out"


@pytest.mark.parametrize(
    "sizes",
    [pytest.param(sizes, marks=pytest.mark.slow) for sizes in ({"context": 2, "data": 4}, *OTHER_MESHES)],
    ids=str,
)
def test_meshes_do_not_change_the_update(sizes, mesh_of):
    objective = objective_of("dmpo", tail_weight=0.5)
    batch = pair_batch(CONFIG, length=64, microbatches=1)
    if "context" in sizes:  # attention chunks lie in one block each: pairs begin with one
        batch = pair_batch(CONFIG, length=64, microbatches=1, blocks=1)
        batch = {name: np.where(np.arange(64) < 16, x, np.zeros_like(x)) for name, x in batch.items()}
    with mesh_of(data=1):
        whole = result(objective, batch)
    with mesh_of(**sizes):
        check_same(result(objective, batch), whole, tolerance=1e-5)


def test_padding_and_observations_get_no_gradient(mesh_of):
    """Other tokens after the last segment, and other weightless labels, change nothing."""
    objective, batch = objective_of("sigmoid"), pair_batch(CONFIG)
    changed = {name: x.copy() for name, x in batch.items()}
    changed["tokens"][batch["segment_ids"] == 0] = 7
    changed["labels"][batch["loss_weights"] == 0] = 9
    with mesh_of(data=1):
        one, other = result(objective, batch), result(objective, changed)
    assert float(one[0]["total"]) == float(other[0]["total"])
    for name, x in names.flatten(one[1]).items():
        np.testing.assert_array_equal(names.flatten(other[1])[name], x, err_msg=name)


@pytest.mark.slow
def test_every_kind_of_loss_trains_the_model(mesh_of):
    with mesh_of(data=1):
        for kind in LOSSES.members:
            found = result(objective_of(kind), pair_batch(CONFIG))
            norm = np.sqrt(sum(float((np.asarray(x) ** 2).sum()) for x in names.flatten(found[1]).values()))
            assert np.isfinite(norm) and norm > 0, kind
