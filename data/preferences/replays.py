"""Certifies mistakes by replaying them: the environment in which a run was made carries out its messages again, with
the mistake in place, and says how that ends."""

import dataclasses
import re
from collections.abc import Iterable

from data.environments import Environment
from data.preferences.pair import PreferencePair
from data.trajectories.trajectory import Outcome, Step, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Role

UNFINISHED = Outcome(0.0, False, "the messages end before the episode")


@dataclasses.dataclass(frozen=True)
class Replays:
    """Replays the runs of one environment."""

    environment: Environment

    def outcome(self, steps: Iterable[Step], seed: int) -> Outcome:
        """How the episode of `seed` ends with the assistant's messages among `steps`."""
        self.environment.reset(seed)
        for step in steps:
            if step.message.role is Role.ASSISTANT:
                found = self.environment.step(step.message).outcome
                if found is not None:
                    return found
        return UNFINISHED

    def succeeds(self, run: Trajectory) -> bool:
        """Whether a run succeeds when it is replayed."""
        return self.outcome(run.steps, seed_of(run)).success is True

    def certifies(self, run: Trajectory, pair: PreferencePair) -> bool:
        """Whether `run` fails if the mistake of the pair's rejected side, which was made in it, is in its place and the
        rest of the run follows."""
        assert pair.rejected is not None
        made = pair.rejected.steps
        rest = () if made[-1:] == run.steps[-1:] else run.steps[len(made) :]
        return self.outcome([*made, *rest], seed_of(run)).success is not True


def seed_of(run: Trajectory) -> int:
    """The seed of a run's episode: the number at the end of its id. Raises InputError if there is none."""
    found = re.search(r"(?<![0-9])[0-9]{1,18}$", run.provenance.id or "")
    if found is None:
        raise InputError(f"preferences.replay: run {run.provenance.id or run.provenance.record}: its id names no seed; "
                         "expected one that ends with it, such as toy_shop-17")  # fmt: skip
    return int(found[0])
