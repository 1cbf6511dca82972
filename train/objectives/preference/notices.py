"""What a user should know of a run on preferences: chosen sides that become unlikely, and what an evaluation lacks."""

from typing import Any

import numpy as np

from train.objectives.base import Notice

FALLS = "chosen_falls"
"""The condition that chosen sides have become less likely."""
FALL, RECOVERED = -10.0, -8.0
"""Changes of the chosen sides' log-probability, in nats per side, at which it begins and ends."""


def of_update(metrics: dict[str, Any]) -> dict[str, Notice]:
    """Whether the chosen sides of an update have become much less likely than the reference has them."""
    if "chosen_change" not in metrics:
        return {}
    change, margin = (float(np.asarray(metrics[name])) for name in ("chosen_change", "margin"))
    if change < FALL:
        why = f"chosen sides are {-change:.1f} nats less likely than by the reference (margin {margin:.1f})"
        return {FALLS: Notice(True, f"{why}; objective.nll: 0.1 keeps them likely")}
    if change > RECOVERED:
        return {FALLS: Notice(False, f"chosen sides are again as likely as by the reference, within {-FALL:.0f} nats")}
    return {}


def of_evaluation(found: dict[str, Any], needs_reference: bool) -> list[str]:
    """Remarks on an evaluation that had to do without the reference."""
    if not needs_reference or "eval_chosen_change" in found:
        return []
    return ["no reference is at hand: sides are compared by the model's log-probabilities alone, so that loss and "
            "margin are not those of training"]  # fmt: skip
