"""What a user should know of a distillation: that the teacher's targets count for nothing, and why."""

from typing import Any

import numpy as np

from train.objectives.base import Notice
from train.objectives.distill.weighting import ALMOST_NOTHING, Weighting

TARGETS = "targets"
"""The condition that soft targets weigh almost nothing."""
COUNT_AGAIN = 0.02
"""The soft weight above which targets count again. Between the two the condition stays as it was, so that a weight that
varies around one of them is not logged again and again."""


def of_update(weighting: Weighting, metrics: dict[str, Any]) -> dict[str, Notice]:
    """Whether the targets of an update weigh almost nothing, from its metrics on the host."""
    numbers = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
    soft, losses = numbers["soft_weight"], _losses(numbers["teacher_loss"], numbers["loss"])
    if soft < ALMOST_NOTHING:
        return {TARGETS: Notice(True, f"{weighting.reason(numbers)}: its targets weigh {soft:.2f} ({losses})")}
    if soft > COUNT_AGAIN:
        return {TARGETS: Notice(False, f"the teacher's targets count: they weigh {soft:.2f} ({losses})")}
    return {}


def of_evaluation(weighting: Weighting, found: dict[str, Any], state: dict[str, float]) -> list[str]:
    """Remarks on an evaluation: which model is ahead on held-out data, if the teacher was at hand, and what the
    weighting's own `state` in the checkpoint says."""
    remarks = []
    teacher, student = found.get("eval_teacher_loss"), found["eval_loss"]
    if teacher is not None and teacher >= student:
        remarks.append(f"the teacher is behind the student on held-out data ({_losses(teacher, student)})")
    return [*remarks, *weighting.remarks(state)]


def _losses(teacher: float, student: float) -> str:
    return f"teacher's loss {teacher:.2f}, student's {student:.2f}"
