"""Weighted training on trajectories: packing, sharding, accumulation and scaled weights do not change the result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.rows.dataset import open_dataset
from data.rows.weighing import CHOICES, KINDS, NO_KIND
from data.trajectories import KindWeights, TokenKind
from launch.report.plots import draw_all
from launch.report.run_record import read_run
from maverick_jax.checkpoint import names
from maverick_jax.errors import InputError
from maverick_jax.network import Balance
from tests.helpers import tiny
from tests.helpers.compilation import AS_USERS_DO
from tests.helpers.small_run import assert_same_run, cut_back, lines
from tests.helpers.trajectory_rows import data_config, tuning, write_runs
from train.config_files import read_config
from train.evaluation.decisions import decision_metrics
from train.objectives import Distill, Pretrain, TrajectoryTuning
from train.objectives.base import Context
from train.objectives.decision_counts import DECISIONS, counts
from train.step import accumulate, eval_step

TUNING = TrajectoryTuning()
ONES = {name: 1.0 for name in KindWeights.model_fields}
CONFIG = tiny.model_config(vocab_size=272, num_hidden_layers=2, no_rope_layer_interval=2, attention_chunk_size=64)
APART = CONFIG.model_copy(update={"balance": Balance(kind="none", z_loss=0.0)})
"""A config without balance terms, which depend on the whole microbatch and not on single tokens."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    config = data_config(tmp_path_factory.mktemp("rows"), 16, sequence_length=384)
    return open_dataset(config, "train", seed=0)


@pytest.fixture(scope="module")
def rows(dataset):
    """Eight packed rows of short trajectories: each field [8, T]."""
    found = [dataset.row(i) for i in range(8)]
    assert max(row["segment_ids"].max() for row in found) > 1
    return {name: np.stack([row[name] for row in found]) for name in found[0]}


def batch_of(rows, microbatches=1, **changes):
    fields = {**rows, **changes}
    return {name: x.reshape(microbatches, -1, x.shape[-1]) for name, x in fields.items()}


@functools.cache
def gradient_of(objective, config=APART):
    """A function from a batch [A, b, T] to (sums, gradients of the loss, metrics)."""
    init, _ = tiny.jitted(config, objective=objective)

    @jax.jit
    def run(model, batch):
        totals, context = objective.totals(batch), Context(jnp.zeros((), jnp.int32), {}, {})
        loss = lambda model, microbatch, totals: objective.loss(model, microbatch, totals, context)
        total = lambda model, mb, totals: (lambda pair: (pair[0], pair[1] | {"total": pair[0]}))(
            loss(model, mb, totals)
        )
        sums, grads = accumulate(total, model, batch, totals)
        return sums, grads, objective.metrics(model, sums, totals, context)

    model = init(0).model
    return lambda batch: run(model, tiny.placed(batch))


def check_same(one, other, tolerance=1e-6):
    """Checks that losses are equal, and gradients to a fraction of the largest element of their array."""
    np.testing.assert_allclose(one[0]["total"], other[0]["total"], rtol=tolerance)
    found, expected = (names.flatten(result[1]) for result in (one, other))
    for name, x in expected.items():
        x = np.asarray(x)
        np.testing.assert_allclose(
            found[name], x, rtol=tolerance, atol=tolerance * max(1, np.abs(x).max()), err_msg=name
        )


@pytest.fixture
def one_device(mesh_of):
    with mesh_of(data=1):
        yield


# ---- invariances -----------------------------------------------------------------------------------------------------


def unpacked(rows):
    """The same rows with each segment in a separate row."""
    found = []
    for i in range(len(rows["tokens"])):
        for number in range(1, rows["segment_ids"][i].max() + 1):
            at = rows["segment_ids"][i] == number
            row = {name: np.full_like(x[i], NO_KIND if name == KINDS else 0) for name, x in rows.items()}
            for name, x in rows.items():
                row[name][: at.sum()] = x[i][at] if name != "segment_ids" else 1
            found.append(row)
    return {name: np.stack([row[name] for row in found]) for name in rows}


def test_packed_equals_unpacked_and_accumulated_and_in_chunks(rows, one_device):
    packed = gradient_of(TUNING)(batch_of(rows))
    check_same(gradient_of(TUNING)(batch_of(unpacked(rows))), packed)
    check_same(gradient_of(TUNING)(batch_of(rows, microbatches=8)), packed)
    check_same(gradient_of(TrajectoryTuning(loss_chunk=100))(batch_of(rows)), packed)


def test_only_ratios_of_weights_matter_unless_tokens_are_counted(rows, one_device):
    weights = rows["loss_weights"]
    plain = gradient_of(TUNING)(batch_of(rows))
    for scale in (2.0, 3.0):
        check_same(gradient_of(TUNING)(batch_of(rows, loss_weights=(weights * scale).astype(np.float32))), plain)
    counting = gradient_of(TrajectoryTuning(normalise="count"))
    once, twice = counting(batch_of(rows)), counting(batch_of(rows, loss_weights=2 * weights))
    np.testing.assert_allclose(twice[0]["total"], 2 * once[0]["total"], rtol=1e-6)
    counted, summed = (float(x[0]["total"]) for x in (once, plain))
    np.testing.assert_allclose(counted * (weights > 0).sum(), summed * weights.sum(dtype=np.float64), rtol=1e-6)
    np.testing.assert_array_equal(twice[2]["loss"], once[2]["loss"])  # the reported loss is the weighted mean


DENSE = {"num_hidden_layers": 1, "num_local_experts": 0}


@pytest.mark.parametrize("network", [DENSE, pytest.param({}, marks=pytest.mark.slow)], ids=["dense", "experts"])
def test_weights_of_one_are_plain_fine_tuning_to_the_bit(network, tmp_path, one_device):
    config = data_config(tmp_path, 4, sequence_length=192, kind_weights=ONES)
    row = open_dataset(config, "train", seed=0).row(1)
    labelled = row[KINDS] != NO_KIND
    assert (row["loss_weights"][labelled] == 1).mean() > 0.8  # the others are in a message with its own weight
    row["loss_weights"] = labelled.astype(np.float32)
    states = []
    for objective in (TUNING, Pretrain()):
        init, step = tiny.jitted(CONFIG.model_copy(update=network), objective=objective)
        batch = tiny.placed({n: x[None, None] for n, x in row.items() if n in objective.fields()})
        # QUICK_FLAGS round the two differently
        step = step.lower(init(0), batch).compile(compiler_options=AS_USERS_DO)
        state, _ = step(init(0), batch)
        state, metrics = step(state, batch)
        states.append({name: np.asarray(x) for name, x in names.flatten(state).items()} | {"loss": metrics["loss"]})
    for name, expected in states[1].items():
        np.testing.assert_array_equal(states[0][name], expected, err_msg=name)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "expert": 2, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param({"context": 2, "expert": 2, "data": 2}, marks=pytest.mark.slow),
    ],
)
def test_one_update_is_the_same_on_any_mesh(sizes, rows, mesh_of):
    smooth = tiny.OPTIMIZER.model_copy(update={"eps": 1e-5})
    results = []
    for mesh in ({"data": 1}, sizes):
        with mesh_of(**mesh):
            init, step = tiny.jitted(APART, smooth, TUNING)
            state, metrics = step(init(0), tiny.placed(batch_of(rows)))
            results.append(({n: np.asarray(x) for n, x in names.flatten(state).items()}, jax.device_get(metrics)))
    (expected, told), (found, told_too) = results
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, atol=2e-6, rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(told_too["loss"], told["loss"], rtol=1e-6)
    np.testing.assert_allclose(told_too["kind_loss"], told["kind_loss"], rtol=1e-5)
    np.testing.assert_array_equal(told_too["kind_tokens"], told["kind_tokens"])


def test_weights_apply_to_distillation_too(rows, one_device):
    """With `distill` too, a label with weight 0 may be any token, and only the ratios of weights matter."""
    objective = Distill(teacher="there")
    init, _ = tiny.jitted(APART)
    model, teacher = init(0).model, init(1).model

    @jax.jit
    def loss(batch):
        totals, context = (
            objective.totals(batch),
            Context(jnp.zeros((), jnp.int32), objective.init(), {"teacher": teacher}),
        )
        return objective.loss(model, jax.tree.map(lambda x: x[0], batch), totals, context)[0]

    fields = {name: x for name, x in rows.items() if name != KINDS}
    weights, labels = rows["loss_weights"], rows["labels"]
    expected = loss(tiny.placed(batch_of(fields)))
    scrambled = np.where(weights > 0, labels, (labels + 7) % 256).astype(np.int32)
    np.testing.assert_allclose(loss(tiny.placed(batch_of(fields, labels=scrambled))), expected, rtol=1e-6)
    np.testing.assert_allclose(loss(tiny.placed(batch_of(fields, loss_weights=2 * weights))), expected, rtol=1e-6)
    changed = np.where(weights == 1.5, 0.5, weights).astype(np.float32)
    assert abs(float(loss(tiny.placed(batch_of(fields, loss_weights=changed))) - expected)) > 1e-5


# ---- metrics ---------------------------------------------------------------------------------------------------------


def guesses(log_p, rows):
    found = (log_p.argmax(-1).astype(np.int32), rows["labels"], rows[CHOICES])
    return [jax.device_put(x, jax.P(*tiny.RULES("batch", "length"))) for x in found]


def test_losses_by_kind_and_decisions_follow_from_the_logits(rows, dataset, one_device):
    _, _, metrics = gradient_of(TUNING)(batch_of(rows))
    init, _ = tiny.jitted(APART, objective=TUNING)
    model = init(0).model
    logits = jax.jit(lambda m, b: m.logits(b["tokens"][0], b["positions"][0], b["segment_ids"][0]))
    log_p = np.asarray(jax.nn.log_softmax(logits(model, tiny.placed(batch_of(rows)))), np.float64)
    nll = -np.take_along_axis(log_p, rows["labels"][..., None], axis=-1)[..., 0]
    told = TUNING.training_metrics(jax.device_get(metrics))
    there = {kind for kind in TokenKind if (rows[KINDS] == kind).any()}
    assert set(told["kind_loss"]) == set(told["kind_tokens"]) == {kind.name.lower() for kind in there}
    for kind in there:
        at = rows[KINDS] == kind
        assert told["kind_tokens"][kind.name.lower()] == at.sum()
        np.testing.assert_allclose(told["kind_loss"][kind.name.lower()], nll[at].mean(), rtol=1e-4)
    np.testing.assert_allclose(told["loss"], (nll * rows["loss_weights"]).sum() / rows["loss_weights"].sum(), rtol=1e-5)
    evaluated = jax.jit(functools.partial(eval_step, objective=TUNING))(
        model, tiny.placed(batch_of(rows, 2)), TUNING.first_context({})
    )
    sums = jax.device_get(evaluated)
    means = TUNING.evaluation_metrics(sums) | decision_metrics(sums, dataset)
    guessed = jax.device_get(jax.jit(lambda *x: counts(*x, CONFIG.vocab_size, model.rules))(*guesses(log_p, rows)))
    assert means.items() >= decision_metrics({DECISIONS: guessed}, dataset).items() and means["decisions"]["call"] > 4
    assert means["kind_tokens"] == told["kind_tokens"]
    np.testing.assert_allclose(means["loss"], told["loss"], rtol=1e-5)
    np.testing.assert_allclose([*means["kind_loss"].values()], [*told["kind_loss"].values()], rtol=1e-5)


def test_it_needs_trajectories():
    with pytest.raises(InputError, match=r"data\.sources: objective\.kind: trajectory needs a source of trajectories"):
        read_config("pretrain_tiny", ["objective.kind=trajectory"])


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_reports_losses_by_kind_and_resumes_to_the_bit(runs, tmp_path):
    write_runs(tmp_path / "runs.jsonl", 24)
    options = [*tuning(tmp_path / "runs.jsonl"), "data.kind_weights={user: 0.25}", "run.steps=6", "run.eval_every=3"]
    options.append("checkpoint.every=2")
    runs.train(tmp_path / "whole", *options)
    told = lines(tmp_path / "whole")
    assert "recovery" in told[0]["kind_loss"] and told[0]["kind_tokens"]["system"] > 0
    assert any("recovery" in line.get("eval_kind_loss", {}) for line in told)
    titles = [drawn.title for drawn in draw_all(read_run(tmp_path / "whole"))]
    assert "Loss by kind of token" in titles and "Held-out loss by kind of token" in titles
    run_dir = cut_back(tmp_path / "whole", tmp_path / "run", 4)
    runs.train(run_dir, *options)
    assert_same_run(tmp_path / "whole", run_dir, 6)
