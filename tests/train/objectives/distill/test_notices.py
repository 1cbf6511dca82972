"""A teacher whose targets weigh nothing is named, with the reason, whatever turns them off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny
from train.notices import Notices
from train.objectives import Distill
from train.objectives.distill.notices import TARGETS
from train.objectives.distill.weighting import Codistill, Confidence, Magnitude, Schedule, Taid
from train.step import train_step

BEHIND = {"loss": 6.29, "teacher_loss": 6.92, "soft_weight": 0.0, "share": 1.0}
KINDS = {
    "online": {"teacher": "anywhere"},
    "offline": {"targets": {"path": "anywhere"}},
}


def distill(kind="online", **more) -> Distill:
    return Distill.model_validate({"kind": "distill", **KINDS[kind], **more})


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_is_behind_is_named_with_both_losses(kind):
    notice = distill(kind).notices(BEHIND | {"lead_ema": -0.395, "confidence": 0.4})[TARGETS]
    assert notice.present
    assert notice.text == (
        "the teacher is behind the student, by 0.40 nats per token on average: its targets weigh 0.00 "
        "(teacher's loss 6.92, student's 6.29)"
    )


@pytest.mark.parametrize(
    ("weighting", "metrics", "reason"),
    [
        (Schedule(start=0.0), {"share": 0.0}, "objective.weighting gives the teacher a share of 0"),
        (Taid(start=0.0), {"share": 0.0, "interpolation": 0.5}, "objective.weighting gives the teacher a share of 0"),
        (Magnitude(start=0.0), {"share": 0.0, "ratio": 1.0}, "objective.weighting gives the teacher a share of 0"),
        (Magnitude(ratio_low=1e-3), {"ratio": 1e-3, "soft_weight": 5e-4}, "divergence from the teacher is many times"),
        (Confidence(), {"confidence": 1e-4}, "the teacher is sure of almost no token"),
        (Codistill(), {"lead_ema": 0.5, "confidence": 1e-4}, "the teacher is sure of almost no token"),
        (Codistill(), {"lead_ema": 0.01, "confidence": 0.5}, "the teacher is hardly ahead of the student"),
        (Codistill(), {"lead_ema": -0.01, "share": 0.0}, "objective.weighting gives the teacher a share of 0"),
    ],
)
def test_the_reason_is_that_of_the_weighting(weighting, metrics, reason):
    notice = distill(weighting=weighting.model_dump()).notices(BEHIND | metrics)[TARGETS]
    assert notice.present and reason in notice.text and "weigh 0.00 (teacher's loss 6.92" in notice.text


def test_the_condition_ends_when_targets_count_and_is_undecided_in_between():
    found = [distill().notices(BEHIND | {"lead_ema": 1.0, "soft_weight": soft}) for soft in (0.5, 0.01, 0.004)]
    assert [[notice.present for notice in notices.values()] for notices in found] == [[False], [], [True]]
    assert found[0][TARGETS].text.startswith("the teacher's targets count: they weigh 0.50")


def test_an_update_on_own_samples_decides_nothing():
    assert distill().notices(BEHIND | {"lead_ema": -1.0, "on_policy": np.int32(1)}) == {}
    assert distill().notices(BEHIND | {"lead_ema": -1.0, "on_policy": np.int32(0)})[TARGETS].present


def test_real_updates_with_a_worse_teacher_are_named_once(caplog):
    """The teacher's logits are those of a random model, times 30: it is sure, and wrong. The first update, before
    anything is measured, follows it."""
    config, objective = tiny.model_config(num_hidden_layers=1, num_local_experts=0), distill()
    with jax.set_mesh(single_device_mesh()):
        teacher = Maverick(config, tiny.RULES, rngs=nnx.Rngs(9))
        teacher.head[...] *= 3000.0
        batch = tiny.placed(tiny.batch(config, rows=4))
        init, _ = tiny.jitted(config, objective=objective)
        optimizer = tiny.OPTIMIZER.build(tiny.STEPS, config)
        step = jax.jit(lambda state, batch, references: train_step(
            state, batch, references, objective=objective, optimizer=optimizer))  # fmt: skip
        state, hook, doubts = init(0), Notices(objective), []
        for i in range(3):
            state, metrics = step(state, batch, {"teacher": teacher})
            metrics = jax.device_get(metrics)
            doubts.append(float(metrics["doubt"]))
            hook.on_metrics(i + 1, metrics, 0.1)
    said = [record.getMessage() for record in caplog.records if "targets" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("step 2: the teacher is behind the student, by ")
    assert doubts == [0.0, np.inf, np.inf]


def test_doubt_is_infinite_without_a_lead_and_never_a_made_up_number():
    weighting = Codistill()
    state = lambda lead: {"lead_ema": jnp.float32(lead), "error_ema": jnp.float32(0), "ema_weight": jnp.float32(1)}
    doubts = [float(weighting.controls(jnp.int32(5), state(lead))["doubt"]) for lead in (-1.0, 0.0, 0.5)]
    assert doubts == pytest.approx([np.inf, np.inf, 0.2])


# ---- evaluation ------------------------------------------------------------------------------------------------------

BEHIND_IN_TRAINING = {"lead_ema": -0.2, "error_ema": 0.1, "ema_weight": 0.5}


def test_an_evaluation_says_that_the_teacher_is_behind_on_held_out_data():
    found = {"eval_loss": 6.29, "eval_teacher_loss": 6.92}
    said = distill().remarks(found, {})
    assert said == ["the teacher is behind the student on held-out data (teacher's loss 6.92, student's 6.29)"]
    assert distill().remarks(found | {"eval_teacher_loss": 6.0}, {}) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_says_what_the_checkpoint_knows_of_the_teacher(kind):
    (said,) = distill(kind).remarks({"eval_loss": 6.29}, BEHIND_IN_TRAINING)
    assert "behind the student in training, by 0.40 nats per token on average: its targets weighed 0.00" in said
    assert distill(kind).remarks({"eval_loss": 6.29}, BEHIND_IN_TRAINING | {"lead_ema": 0.2}) == []
    assert distill(kind, weighting={"kind": "schedule"}).remarks({"eval_loss": 6.29}, BEHIND_IN_TRAINING) == []
