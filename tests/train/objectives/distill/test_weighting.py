"""Weightings of soft and hard targets: formulas and states equal NumPy's, on meshes and in resumed runs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.distillation import Terms
from maverick_jax.pretrained import save_pretrained
from maverick_jax.sharding import single_device_mesh
from tests.helpers import small_run, tiny
from train import run
from train.config_files import read_config
from train.objectives import Distill
from train.objectives.distill.weighting import Codistill, Confidence, Magnitude, Schedule, Taid
from train.step import train_step

V = 50
RAMP = {"shape": "linear", "start": 0.9, "end": 0.3, "steps": 8}
STEP = jnp.int32(3)
SHARE = np.float32(0.9 + (0.3 - 0.9) * 3 / 8)


def random_terms(n: int = 200) -> tuple[Any, Any]:
    """Random terms of `n` tokens, a tenth of them with weight 0. The student is worse than its teacher at some tokens
    and better at others."""
    rng = np.random.default_rng(0)
    nll, teacher_nll = rng.exponential(2, (2, n)).astype(np.float32)
    entropy, divergence = rng.uniform(0, np.log(V), n), rng.exponential(0.5, n)
    rows: list[Any] = [nll, divergence.astype(np.float32), teacher_nll, entropy.astype(np.float32)]
    terms = Terms(*rows)
    return terms, (rng.uniform(0.5, 2, n) * (rng.uniform(size=n) > 0.1)).astype(np.float32)


TERMS, WEIGHTS = random_terms()


def weighed(weighting, state=None):
    """(hard, soft, parts, controls) at STEP, as NumPy."""
    controls = weighting.controls(STEP, weighting.init() if state is None else state)
    found = weighting.weigh(jax.tree.map(jnp.asarray, TERMS), WEIGHTS, controls | {"max_entropy": jnp.log(V * 1.0)})
    return *jax.tree.map(np.asarray, tuple(found)), jax.tree.map(np.asarray, controls)


def moved(weighting, steps: list[dict[str, float]]):
    """The state after steps with the metrics `steps`."""
    state = weighting.init()
    for i, metrics in enumerate(steps):
        controls = weighting.controls(jnp.int32(i), state)
        state = weighting.advance(state, jax.tree.map(jnp.float32, metrics) | controls)
        assert all(x.dtype == jnp.float32 and x.shape == () for x in state.values())
        assert state.keys() == weighting.init().keys()
    return state


STEPS = [
    {"loss": 3.0 - 0.2 * i, "teacher_loss": 1.5, "teacher_entropy": 1.4, "divergence": 0.8 / (i + 1)} for i in range(5)
]

# ---- each formula ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["label", "entropy"])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_confidence(by, power):
    hard, soft, parts, controls = weighed(Confidence(by=by, power=power, **RAMP))
    sure = np.exp(-TERMS.teacher_nll) if by == "label" else 1 - TERMS.teacher_entropy / np.log(V)
    np.testing.assert_allclose(parts["confidence"], sure**power, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(soft, SHARE * sure**power * WEIGHTS, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(hard + soft, WEIGHTS, rtol=1e-6)
    assert controls["share"] == pytest.approx(SHARE)


def test_an_entropy_above_its_maximum_gives_no_confidence():
    terms = TERMS._replace(teacher_entropy=np.full_like(WEIGHTS, np.log(V) * 1.0001))
    controls = {"share": jnp.float32(1), "max_entropy": jnp.log(V * 1.0)}
    found = Confidence(by="entropy", power=0.5).weigh(jax.tree.map(jnp.asarray, terms), WEIGHTS, controls)
    np.testing.assert_array_equal(found.soft, 0 * WEIGHTS)


@pytest.mark.parametrize("by", ["label", "entropy"])
def test_codistill(by):
    low, high = 0.1, 0.6
    weighting = Codistill(by=by, power=0.7, gap_scale=0.5, gap_power=1.5, decay=0.8, low=low, high=high, **RAMP)
    hard, soft, parts, controls = weighed(weighting, moved(weighting, STEPS))
    mean = lambda of: np.average([of(step) for step in STEPS], weights=0.8 ** np.arange(5)[::-1])
    lead = mean(lambda step: step["loss"] - step["teacher_loss"])
    error = mean(lambda step: step["teacher_loss"] - step["teacher_entropy"])
    sure = (np.exp(-TERMS.teacher_nll) if by == "label" else 1 - TERMS.teacher_entropy / np.log(V)) ** 0.7
    gap = (sure * lead) ** 1.5 / ((sure * lead) ** 1.5 + (0.5 + error) ** 1.5)
    assert (SHARE * gap).min() < low < (SHARE * gap).mean() < high < (0.9 * gap).max()
    share = np.clip(SHARE * gap, low, high)
    np.testing.assert_allclose(soft, share * WEIGHTS, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(hard, (1 - share) * WEIGHTS, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts["confidence"], sure, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts["gap"], gap, rtol=1e-5, atol=1e-6)
    expected = {"share": SHARE, "doubt": (0.5 + error) / lead, "lead_ema": lead, "error_ema": error}
    assert controls == pytest.approx(expected, rel=1e-5)


def test_the_gap_of_codistill_depends_on_lead_and_error():
    def gap(lead, error):
        metrics = {"loss": lead + 1.0, "teacher_loss": 1.0, "teacher_entropy": 1.0 - error}
        return float(weighed(weighting, moved(weighting, [metrics]))[2]["gap"].mean())

    weighting = Codistill(power=0.0, gap_scale=0.1)
    assert (weighed(weighting)[2]["gap"] == 1).all()  # there are no averages yet
    gaps = [gap(lead, 0.0) for lead in (2.0, 0.5, 0.1, 0.0, -1.0)]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0.99
    assert gaps[2] == pytest.approx(0.5, rel=1e-4) and gaps[3:] == [0, 0]
    assert gap(0.5, 0.4) == pytest.approx(0.5, rel=1e-4) and gap(0.5, -0.4) == gaps[1]


def test_a_teacher_without_confidence_gets_no_share():
    terms = TERMS._replace(teacher_entropy=np.full_like(WEIGHTS, np.log(V) * 1.0001))
    controls = {"share": jnp.float32(1), "max_entropy": jnp.log(V * 1.0)}
    terms = jax.tree.map(jnp.asarray, terms)
    for doubt, gap in ((0.1, 0), (0.0, 1)):
        found = Codistill(power=0.5).weigh(terms, WEIGHTS, controls | {"doubt": jnp.float32(doubt)})
        np.testing.assert_array_equal(found.soft, gap * WEIGHTS)


@pytest.mark.parametrize("limits", [(0.01, 100.0), (0.5, 2.0)])
def test_magnitude(limits):
    weighting = Magnitude(decay=0.9, ratio_low=limits[0], ratio_high=limits[1], **RAMP)
    state = moved(weighting, STEPS)
    ages = 0.9 ** np.arange(5)[::-1]
    mean = {name: np.average([step[name] for step in STEPS], weights=ages) for name in ("loss", "divergence")}
    ratio = np.clip(mean["loss"] / mean["divergence"], *limits)
    hard, soft, _, controls = weighed(weighting, state)
    expected = {"share": SHARE, "ratio": ratio, "loss_ema": mean["loss"], "divergence_ema": mean["divergence"]}
    assert controls == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(soft, SHARE * ratio * WEIGHTS, rtol=1e-5)
    np.testing.assert_allclose(hard, (1 - SHARE) * WEIGHTS, rtol=1e-5)


def test_magnitude_with_a_divergence_of_zero():
    state = moved(Magnitude(), [{"loss": 2.0, "divergence": 0.0}])
    assert float(Magnitude().controls(STEP, state)["ratio"]) == 100
    assert float(Magnitude().controls(STEP, Magnitude().init())["ratio"]) == 1


def test_taid():
    weighting = Taid(interpolation_start=0.2, interpolation_steps=50, interpolation_rate=0.3, momentum=0.6, **RAMP)
    t, improvement, last, found = 0.2, 0.0, None, []
    for i, step in enumerate(STEPS):
        t = max(t, 0.2 + 0.8 * i / 50)
        now = step["divergence"]
        if last is not None:
            improvement = 0.6 * improvement + 0.4 * (last - now) / last
        else:
            improvement = 0.6 * improvement
        last, before = now, t
        t = t + 0.3 / (1 + np.exp(-improvement)) * (1 - t)
        found.append((before, t, improvement))
    assert found[-1][1] > 0.5 > found[0][1]
    state = moved(weighting, STEPS)
    expected = {"interpolation": t, "improvement": improvement, "last_divergence": last}
    assert jax.tree.map(float, state) == pytest.approx(expected, rel=1e-5)
    hard, soft, _, controls = weighed(weighting, state)
    assert controls == pytest.approx({"share": SHARE, "interpolation": t, "improvement": improvement}, rel=1e-5)
    np.testing.assert_allclose([hard, soft], [(1 - SHARE) * WEIGHTS, SHARE * WEIGHTS], rtol=1e-5)


def test_taid_has_a_floor_and_a_ceiling():
    weighting, at = Taid(interpolation_start=0.4, interpolation_steps=100), {}
    for step in (0, 50, 100, 1000):
        at[step] = float(weighting.controls(jnp.int32(step), weighting.init())["interpolation"])
    assert at == pytest.approx({0: 0.4, 50: 0.7, 100: 1, 1000: 1})


@pytest.mark.parametrize(
    "neutral",
    [
        Magnitude(ratio_low=1.0, ratio_high=1.0, **RAMP),
        Confidence(by="label", power=0.0, **RAMP),
        Confidence(by="entropy", power=0.0, **RAMP),
        Taid(interpolation_start=1.0, **RAMP),
        Codistill(by="label", gap_scale=0.0, **RAMP),
        Codistill(by="entropy", gap_scale=0.0, **RAMP),
    ],
    ids=lambda weighting: f"{weighting.kind}-{getattr(weighting, 'by', '')}",
)
def test_neutral_settings_are_a_schedule_to_the_bit(neutral):
    """This also holds after steps."""
    expected = weighed(Schedule(**RAMP))
    found = weighed(neutral, moved(neutral, STEPS))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[3].get("interpolation", 1) == 1


# ---- in a step -------------------------------------------------------------------------------------------------------

STUDENT = tiny.model_config(num_hidden_layers=1, interleave_moe_layer_step=1)
WEIGHTING = Magnitude(decay=0.5, **RAMP)


def two_steps(microbatches: int):
    """(state, metrics) after two updates on the current mesh, as NumPy."""
    objective = Distill(teacher="anywhere", weighting=WEIGHTING)
    init, _ = tiny.jitted(STUDENT, objective=objective)
    optimizer = tiny.OPTIMIZER.model_copy(update={"eps": 1e-5}).build(
        tiny.STEPS, STUDENT
    )  # with a smaller eps, rounding would matter
    step = jax.jit(functools.partial(train_step, objective=objective, optimizer=optimizer))
    state, teacher = init(0), init(1).model
    for i in range(2):
        batch = tiny.batch(STUDENT, i, microbatches=microbatches)
        batch["labels"] = np.where(
            batch["positions"] == 1, ~batch["labels"], batch["labels"]
        )  # labels marked as samples
        state, metrics = step(state, tiny.placed(batch), {"teacher": teacher})
    found = jax.tree.map(np.asarray, (state.objective, metrics))
    batch["loss_weights"][0, 0, 0] = np.nan
    state, metrics = step(state, tiny.placed(batch), {"teacher": teacher})
    assert metrics["skipped"] == 1
    assert jax.tree.map(np.asarray, state.objective) == found[0]  # a refused update does not change the state
    return found


@pytest.fixture(scope="module")
def whole_batch():
    with jax.set_mesh(single_device_mesh()):
        return two_steps(1)


def assert_same(found, expected):
    for name, value in expected[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=5e-5, err_msg=name)
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=2e-4, atol=1e-6, err_msg=name)


def test_a_step_reports_the_parts_of_the_weights(whole_batch):
    state, metrics = whole_batch
    share = 0.9 - 0.6 / 8
    assert metrics["share"] == pytest.approx(share) and metrics["ratio"] > 5
    assert metrics["soft_weight"] == pytest.approx(share * metrics["ratio"], rel=1e-5)
    assert 0 < metrics["hard_weight"] < (1 - share) * 0.95  # some labels are samples
    for name in ("loss", "divergence"):
        assert state[f"{name}_ema"] == pytest.approx(0.5 * metrics[name] + 0.25 * metrics[f"{name}_ema"], rel=1e-5)
    assert state["ema_weight"] == 0.75


@pytest.mark.parametrize("weighting", [Schedule(), Magnitude(), Confidence(), Taid(), Codistill()])
def test_no_two_metrics_have_one_name(weighting):
    theirs = {"loss", "divergence", "teacher_loss", "teacher_entropy", "hard_weight", "soft_weight", "tokens"}
    theirs |= {"grad_norm", "learning_rate", "skipped", "step", "eval_loss"}
    _, _, parts, controls = weighed(weighting)
    assert controls.keys() & parts.keys() == set()
    assert not (controls.keys() | parts.keys()) & theirs


def test_microbatches_add_up(whole_batch):
    with jax.set_mesh(single_device_mesh()):
        assert_same(two_steps(8), whole_batch)


@pytest.mark.slow
def test_every_mesh_gives_the_same(whole_batch, mesh_of):
    with mesh_of(expert=2, tensor=2):
        assert_same(two_steps(1), whole_batch)


# ---- in a run --------------------------------------------------------------------------------------------------------


SMALLER = ["model.num_hidden_layers=1", "model.interleave_moe_layer_step=1", "optimizer.accumulation_steps=1"]


@pytest.fixture(scope="module")
def teachers(runs, tmp_path_factory):
    """Two teachers with the same shape."""
    network = read_config(runs.config, SMALLER).model.network
    folder = tmp_path_factory.mktemp("teachers")
    with jax.set_mesh(single_device_mesh()):
        teacher = jax.jit(lambda: Maverick(network, tiny.RULES, rngs=nnx.Rngs(1)))()
        for name in (1, 2):
            save_pretrained(jax.tree.map(lambda x, by=name: by * x, teacher), folder / str(name), dtype="float32")
    return folder


@pytest.fixture(scope="module")
def distill(runs, teachers):
    """`distill(run_dir, *overrides)` trains 4 updates in this process."""
    shown = f"objective={{kind: distill, teacher: {teachers / '1'}, weighting: {{kind: codistill}}}}"
    fixed = [*SMALLER, "run.steps=4", "run.eval_every=0", "checkpoint.every=1", shown]

    def train(run_dir, *overrides):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MAVERICK_CACHE", str(runs.root / "cache"))
            return run.main(runs.config, [f"run.dir={run_dir}", *fixed, *overrides])

    return train


@pytest.fixture(scope="module")
def whole(distill, runs):
    distill(runs.root / "distilled")
    return runs.root / "distilled"


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_bit(distill, whole, tmp_path):
    resumed = small_run.cut_back(whole, tmp_path / "run", 2)
    distill(resumed)
    small_run.assert_same_run(whole, resumed, step=4)
    saved = small_run.checksums(whole, 4)
    assert {"objective/lead_ema", "objective/error_ema", "objective/ema_weight"} < set(saved)
    assert saved["objective/lead_ema"] != small_run.checksums(whole, 3)["objective/lead_ema"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.weighting.kind=schedule", "objective.weighting.kind: codistill there, schedule here"),
        ("objective.weighting.kind=magnitude", "objective.weighting.kind: codistill there, magnitude here"),
        ("objective.teacher=2", "objective.teacher: .* holds other numbers than what this run has learned from"),
        ("objective={kind: pretrain}", "objective.kind: distill there, pretrain here"),
    ],
)
def test_another_objective_under_a_resumed_run_is_refused(override, said, distill, whole, teachers):
    before = small_run.contents(whole)
    with pytest.raises(InputError, match=said):
        distill(whole, "run.steps=6", override.replace("=2", f"={teachers / '2'}"))
    assert small_run.contents(whole) == before


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{kind: codistil}", "weighting.kind: 'codistil' is not one of .*did you mean codistill"),
        ("{kind: codistill, low: 0.6, high: 0.4}", "objective.weighting: low 0.6 is more than high"),
        ("{kind: codistill, gap_scale: -1}", "weighting.gap_scale: .*greater than or equal to 0"),
        ("{kind: codistill, gap_scal: 1}", "did you mean objective.weighting.gap_scale"),
        ("{kind: magnitude, decay: 1.0}", "weighting.decay: .*less than 1"),
        ("{kind: magnitude, ratio_low: 3.0, ratio_high: 2.0}", "ratio_low 3.0 is more than ratio_high"),
        ("{kind: confidence, by: labels}", "weighting.by: 'labels' is not one of label, entropy; did you mean label"),
        ("{kind: confidence, power: .inf}", "weighting.power"),
        ("{kind: taid, interpolation_start: 1.5}", "weighting.interpolation_start: .*less than or equal to 1"),
        ("{kind: taid, shape: linear}", "weighting: shape linear needs an end"),
    ],
)
def test_a_bad_weighting_is_refused(section, message):
    with pytest.raises(InputError, match=message):
        read_config("pretrain_tiny", [f"objective={{kind: distill, teacher: x, weighting: {section}}}"])
