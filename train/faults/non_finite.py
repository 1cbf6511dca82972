"""Ends a run that refuses too many updates."""

from typing import Any

from maverick_jax.errors import NonFiniteBudgetSpent
from train.loop import Hook


class NonFiniteBudget(Hook):
    """Ends the run when more than `budget` updates have been refused (`metrics["skipped"]`, cumulative)."""

    def __init__(self, budget: int):
        self.budget = budget

    def on_metrics(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
        skipped = int(metrics.get("skipped", 0))
        if skipped > self.budget:
            raise NonFiniteBudgetSpent(
                f"step {step}: {skipped} updates were refused because loss or gradients were not finite or a spike; at "
                f"most {self.budget} are allowed. Parameters are unharmed; look at the data of these steps or lower "
                "optimizer.learning_rate before going on"
            )
