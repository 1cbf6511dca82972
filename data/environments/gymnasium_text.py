"""An environment made of a Gymnasium environment whose actions and observations are texts, such as tau2-bench's.

As with `tool_methods`, a package of the user's subclasses `GymnasiumTextConfig`. Gymnasium itself is not needed here.
"""

import abc
from collections.abc import Sequence
from typing import Any

from data.environments.base import EnvironmentConfig, Feedback, Opening
from data.trajectories.trajectory import Outcome, Step
from maverick_jax.text.chat import Message, Role, Tool
from maverick_jax.text.chat.pythonic import write
from maverick_jax.text.chat.spans import Text


class GymnasiumTextConfig(EnvironmentConfig, abc.ABC):
    """The base of environments that are a Gymnasium environment of texts."""

    kind: str

    @abc.abstractmethod
    def instance(self) -> Any:
        """The environment: `reset(seed=...)` gives (observation, info), and `step(action)` (observation, reward,
        terminated, truncated, info), with texts as observations and actions."""

    def tools(self, instance: Any) -> Sequence[Tool]:
        """The tools that are declared to the model. A call becomes the action `name(argument=value)`."""
        return ()

    def success(self, reward: float) -> bool:
        """Whether an episode with this sum of rewards succeeded."""
        return reward >= 1

    def make(self) -> "GymnasiumText":
        return GymnasiumText(self)


class GymnasiumText:
    """Each call is an action, and so is a message without one. The reward is the sum of the steps' rewards."""

    def __init__(self, config: GymnasiumTextConfig):
        self.config, self.name, self._instance = config, config.kind, config.instance()
        self.tools, self._reward = tuple(config.tools(self._instance)), 0.0

    def reset(self, seed: int) -> Opening:
        observation, _ = self._instance.reset(seed=seed)
        self._reward = 0.0
        return Opening([Step(Message(Role.USER, str(observation)))], f"{self.name}-{seed}")

    def step(self, message: Message) -> Feedback:
        steps: list[Step] = []
        actions = [action_of(call) for call in message.calls] or [message.text]
        for call, action in zip([*message.calls] or [None], actions, strict=True):
            observation, reward, terminated, truncated, _ = self._instance.step(action)
            self._reward += float(reward)
            role, call_id = (Role.USER, None) if call is None else (Role.TOOL, call.id)
            steps.append(Step(Message(role, str(observation), call_id=call_id)))
            if terminated or truncated:
                how = "terminated" if terminated else "truncated"
                return Feedback(steps, Outcome(self._reward, self.config.success(self._reward), how))
        return Feedback(steps)


def action_of(call) -> str:
    """A call as text, such as `find_order(order="A1")`."""
    text = "".join(segment.text for segment in write([call]) if isinstance(segment, Text))
    return text.strip().removeprefix("[").removesuffix("]")
