"""The updates of a run from any of its states on: the loop over the run's own batches."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

from train.batches import Feed
from train.faults.rollback import Rollbacks
from train.loop import Hook, fit
from train.rollouts.source import Setting, batch_source
from train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Updates:
    """What the updates of a run need besides its state."""

    step: Callable
    """As of `fit`."""
    feed: Feed
    rollbacks: Rollbacks
    setting: Setting

    def __call__(self, state: TrainState, stop: int, hooks: Sequence[Hook] = ()) -> TrainState:
        """The state after update `stop`. The updates learn from the batches that the run has for them, whoever asks."""
        start = int(state.step)
        with self.feed.batches(start, stop, self.rollbacks) as found:
            batches = batch_source(self.feed.config.objective.batch_maker(), found, self.setting)
            with contextlib.closing(batches):
                return fit(self.step, state, batches, start=start, stop=stop, hooks=hooks)
