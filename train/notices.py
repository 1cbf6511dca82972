"""A hook that tells what a user should know of a run while it trains."""

import logging
from typing import Any

import jax

from train.loop import Hook
from train.objectives.base import Objective

log = logging.getLogger(__name__)


class Notices(Hook):
    """Logs each of the objective's conditions (`Objective.notices`) once when it begins, and once when it ends."""

    def __init__(self, objective: Objective):
        self._objective = objective
        self._present: set[str] = set()

    def on_metrics(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
        for name, notice in self._objective.notices(metrics).items():
            if notice.present == (name in self._present):
                continue
            (self._present.add if notice.present else self._present.discard)(name)
            if jax.process_index() == 0:
                log.log(logging.WARNING if notice.present else logging.INFO, "step %d: %s", step, notice.text)
