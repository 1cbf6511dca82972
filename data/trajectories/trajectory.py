"""The normal form of a trajectory: a conversation with tools, and annotations of its messages.

Messages, calls with parsed arguments and tools are those of `maverick_jax.text.chat`. A trajectory adds which results
are errors, rewards, loss weights, provenance and unknown fields.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from maverick_jax.errors import InputError
from maverick_jax.text.chat import Conversation, Message, Role, Tool, values

MAX_EXTRA_CHARACTERS, MAX_EXTRA_ITEMS = 1 << 24, 1 << 20
"""Limits for the unknown fields of one message, or of one trajectory outside its messages."""
MAX_LABEL = 4_096
"""Most characters of an id, a task or a termination reason."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One message of a trajectory with its annotations."""

    message: Message
    error: bool = False
    """For a tool result: whether the call failed."""
    weight: float | None = None
    """Loss weight of this message, which overrides the weights of its token kinds; None means no override."""
    reward: float | None = None
    """Reward of this message alone."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Name or path -> JSON value, for fields that the normal form lacks."""

    def __post_init__(self):
        if self.error and self.message.role is not Role.TOOL:
            raise InputError(f"error: on a message of role {self.message.role.header}; only a tool result has it")
        _set(self, "weight", _number(self.weight, "weight"))
        if self.weight is not None and self.weight < 0:
            raise InputError(f"weight: {self.weight:g}; expected 0 or more")
        _set(self, "reward", _number(self.reward, "reward"))
        _set(self, "extra", _extra(self.extra))


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a trajectory came from."""

    format: str = ""
    file: str = ""
    """File name relative to the folder that was read. It is never opened again."""
    record: int | None = None
    """Number of the record in its file, from 0."""
    line: int | None = None
    """Line of the record, from 1; None if the file is a single document."""
    id: str | None = None
    """Name of the trajectory."""
    task: str | None = None
    """The task; several trajectories may share one."""

    def __post_init__(self):
        for name in ("format", "file", "id", "task"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or len(value) > MAX_LABEL):
                raise InputError(f"provenance.{name}: expected a text of at most {MAX_LABEL:,} characters")
            values.checked(value, f"provenance.{name}")
        for name, least in (("record", 0), ("line", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise InputError(f"provenance.{name}: {value!r:.80}; expected an integer of at least {least}")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a trajectory ended."""

    reward: float | None = None
    success: bool | None = None
    termination: str | None = None
    """Why it ended, as given by its source."""

    def __post_init__(self):
        _set(self, "reward", _number(self.reward, "reward"))
        if self.success is not None and type(self.success) is not bool:
            raise InputError(f"success: expected true or false, got {type(self.success).__name__}")
        if self.termination is not None and (
            not isinstance(self.termination, str) or len(self.termination) > MAX_LABEL
        ):
            raise InputError(f"termination: expected a text of at most {MAX_LABEL:,} characters")
        values.checked(self.termination, "termination")


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A trajectory. It is checked when created, including all checks of `Conversation`."""

    steps: Sequence[Step]
    tools: Sequence[Tool] = ()
    outcome: Outcome = dataclasses.field(default_factory=Outcome)
    provenance: Provenance = dataclasses.field(default_factory=Provenance)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Name -> JSON value, for fields of the record that the normal form lacks."""

    def __post_init__(self):
        _set(self, "steps", tuple(self.steps))
        _set(self, "tools", tuple(self.tools))
        _set(self, "extra", _extra(self.extra))
        self.conversation  # noqa: B018  creating it checks the messages

    @functools.cached_property
    def conversation(self) -> Conversation:
        """The conversation, for `maverick_jax.text.chat.render`; message i is that of step i."""
        return Conversation(tuple(step.message for step in self.steps), self.tools)


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise InputError(f"{where}: {value!r:.80}; expected a finite number")
    return float(value)


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _extra(extra: Any) -> dict[str, Any]:
    if not isinstance(extra, Mapping):
        raise InputError(f"extra: expected an object, got {type(extra).__name__}")
    return values.checked(dict(extra), "extra", max_characters=MAX_EXTRA_CHARACTERS, max_items=MAX_EXTRA_ITEMS)


def _set(instance: Any, field: str, value: Any) -> None:
    object.__setattr__(instance, field, value)
