"""A pair: two trajectories of which one is preferred to the other, or one of them with a verdict."""

import dataclasses
import functools
import hashlib

from data.trajectories.formats import ours
from data.trajectories.trajectory import MAX_LABEL, Outcome, Provenance, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Role


@dataclasses.dataclass(frozen=True)
class PreferencePair:
    """A chosen and a rejected trajectory. One of them may be missing: the other is then good or bad by itself. Raises
    InputError if both are missing or both say the same."""

    chosen: Trajectory | None
    rejected: Trajectory | None
    task: str = ""
    """The task that both attempt. Pairs of one task are never split between training and evaluation. Empty: everything
    before the assistant's first message."""
    origin: str = ""
    """What made it: `outcomes`, `corruptions` or another word; empty if its file does not say."""

    def __post_init__(self):
        if self.chosen is None and self.rejected is None:
            raise InputError("pair: neither a chosen nor a rejected side")
        if len(self.task) > MAX_LABEL or len(self.origin) > MAX_LABEL:
            raise InputError(f"pair: task and origin are texts of at most {MAX_LABEL:,} characters")
        if self.chosen is not None and self.rejected is not None and said(self.chosen) == said(self.rejected):
            raise InputError("pair: the chosen and the rejected side say the same")

    @property
    def sides(self) -> tuple[Trajectory | None, Trajectory | None]:
        return self.chosen, self.rejected

    @functools.cached_property
    def id(self) -> str:
        """Digest of what both sides say, whatever form they were read from."""
        return _digest(*("" if side is None else said(side) for side in self.sides))

    @functools.cached_property
    def group(self) -> str:
        """Name of the task, or a digest of what comes before the assistant's first message."""
        if self.task:
            return f"task {self.task}"
        side = self.chosen or self.rejected
        assert side is not None
        roles = [step.message.role for step in side.steps]
        first = roles.index(Role.ASSISTANT)
        if first == 0:
            return f"pair {self.id}"
        before = [(step.message.role.header, step.message.text) for step in side.steps[:first]]
        return f"prompt {_digest(*(text for message in before for text in message))}"


def said(trajectory: Trajectory) -> str:
    """The messages and tools of a trajectory as text, without annotations: equal for equal conversations. Ids of calls
    are left out, since no chat format writes them."""
    steps = []
    for step in trajectory.steps:
        calls = tuple(dataclasses.replace(call, id=None) for call in step.message.calls)
        message = dataclasses.replace(step.message, calls=calls, call_id=None)
        steps.append(dataclasses.replace(step, message=message, weight=None, reward=None, extra={}))
    plain = Trajectory(steps, trajectory.tools, Outcome(), Provenance())
    return ours.write(plain)


def _digest(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:32]
