"""The settings of rollouts: episodes that the model plays in environments, to learn from how they go."""

from typing import Annotated

import numpy as np
import pydantic
from pydantic import Field

from data.environments import AnyEnvironment, EnvironmentConfig
from data.policy import read_policy
from maverick_jax.errors import InputError
from maverick_jax.inference.engine import EngineSettings
from maverick_jax.settings.section import Section
from maverick_jax.text.chat import find_dialect

Positive = Annotated[int, Field(ge=1)]
Environments = Annotated[dict[str, AnyEnvironment], Field(min_length=1)]


class RolloutSettings(Section):
    """`objective.rollouts`: how many episodes are played, and their limits."""

    prompts: Positive = 16
    """Tasks that are drawn each time; the environments take turns."""
    group: Positive = 8
    """Episodes of each task. Their rewards are compared with each other."""
    max_tokens: Annotated[int, Field(ge=8)]
    """Most tokens of an episode: prompt, everything that the model writes, and results. `data.sequence_length` divided
    by it is the number of episodes in a row."""
    turn_tokens: Positive = 256
    """Most tokens of one message of the model. An episode that reaches this limit or `max_tokens` is cut; its reward is
    0."""
    learn_from_cut: bool = False
    """Whether the tokens of episodes that are cut are learned from. false: only their reward counts, in their group."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Temperature of sampling. The loss is that of the distribution at this temperature."""
    dialect: str | None = None
    """Dialect of calls. null: the tokenizer's, or else the default."""
    slots: Positive = 32
    """Episodes that the model writes at the same time; a multiple of the device groups that divide batches."""
    keep_bytes: Annotated[int, Field(ge=0)] = 1 << 28
    """Most bytes of keys and values of unfinished episodes that are kept between turns, on each device group. What does
    not fit is computed again."""
    time_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 30.0
    """Seconds that an environment may take for one answer. An episode that waits longer counts as failed, and nothing
    is learned from it. null: no limit."""
    result_characters: Positive = 20_000
    """Most characters of one message of an environment; longer ones are cut, and say so."""
    gate: bool = False
    """Whether calls that break the rules of their environment's `policy` are held back: they get an error as their
    result and do not reach the environment."""
    passes: Positive = 1
    """How often the same episodes are learned from before new ones are played."""
    minibatches: Positive = 1
    """Updates per pass, each on an equal part of the tasks."""
    write_every: Annotated[int, Field(ge=0)] = 1
    """Of every so many sets of episodes, one is written to `rollouts/` in the run directory; 0: none."""

    @pydantic.model_validator(mode="after")
    def _divides(self):
        if self.prompts % self.minibatches:
            raise ValueError(f"prompts: {self.prompts} is not a multiple of minibatches ({self.minibatches})")
        if self.dialect is not None:
            find_dialect(self.dialect)
        return self

    @property
    def episodes(self) -> int:
        """Episodes that are played each time."""
        return self.prompts * self.group

    @property
    def updates(self) -> int:
        """Updates on the same episodes."""
        return self.passes * self.minibatches

    @property
    def engine(self) -> EngineSettings:
        """Those of the engine that writes the episodes."""
        return EngineSettings(
            min(self.slots, self.episodes), self.max_tokens, queue=self.episodes, keep_bytes=self.keep_bytes, lazy=True
        )

    def rows(self, sequence_length: int) -> int:
        """Rows of `sequence_length` tokens that one update's episodes take."""
        return -(-self.episodes // self.minibatches // max(sequence_length // self.max_tokens, 1))

    def misfits(self, batch_size: int, sequence_length: int, groups: int) -> list[tuple[str, str]]:
        """(config key, error) if an update's episodes do not fill batches of this shape, or `groups` of devices do not
        divide the slots."""
        each, of_update = sequence_length // self.max_tokens, self.episodes // self.minibatches
        if not each:
            said = f"{sequence_length} is less than objective.rollouts.max_tokens ({self.max_tokens})"
            return [("data.sequence_length", f"{said}; expected a multiple of it")]
        if of_update % each or batch_size != of_update // each:
            said = f"{batch_size} rows of {each} episodes, and an update has {of_update} episodes"
            fits = f"{of_update // each}" if of_update % each == 0 else "episodes that fill rows"
            return [("data.batch_size", f"{said} (prompts * group / minibatches); expected {fits}")]
        if (slots := min(self.slots, self.episodes)) % groups:
            return [("objective.rollouts.slots", f"{slots} is not a multiple of {groups}, the groups of devices")]
        return []


def environment_of(environments: dict[str, EnvironmentConfig], number: int) -> EnvironmentConfig:
    """The environment of task `number`; they take turns."""
    return list(environments.values())[number % len(environments)]


def unread_policies(environments: dict[str, EnvironmentConfig]) -> list[tuple[str, str]]:
    """(config key, error) of each environment whose policy cannot be read."""
    found = []
    for name, environment in environments.items():
        try:
            _ = None if environment.policy is None else read_policy(environment.policy)
        except InputError as error:
            found.append((f"objective.environments.{name}.policy", str(error)))
    return found


def derived(*numbers: int) -> int:
    """A seed of 32 bits from others, the same on every machine."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
