"""The normal form of an agent's run: a conversation, and what is known of each message beyond what was said.

What was said is `maverick_jax.text.chat`'s: messages, calls with parsed arguments, tools. This adds what a run has and
a conversation has not: which results are errors, rewards, weights, where it came from, and fields we do not know.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from maverick_jax.errors import InputError
from maverick_jax.text.chat import Conversation, Message, Role, Tool, values

MAX_EXTRA_CHARACTERS, MAX_EXTRA_ITEMS = 1 << 24, 1 << 20
"""Of the unknown fields of one message, or of one trajectory outside its messages."""
MAX_LABEL = 4_096
"""Characters of an id, a task, the reason of an end."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One message of a run, and what is known of it."""

    message: Message
    error: bool = False
    """Of a tool's result: the call failed."""
    weight: float | None = None
    """Loss weight of this message, instead of what its kinds have; None: no override."""
    reward: float | None = None
    """Given for this message alone."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """JSON values of fields that have no place here, by name or path."""

    def __post_init__(self):
        if self.error and self.message.role is not Role.TOOL:
            raise InputError(f"error: of {self.message.role.header}; only a tool's result is an error or none")
        _set(self, "weight", _number(self.weight, "weight"))
        if self.weight is not None and self.weight < 0:
            raise InputError(f"weight: {self.weight:g}; expected 0 or more")
        _set(self, "reward", _number(self.reward, "reward"))
        _set(self, "extra", _extra(self.extra))


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a trajectory was read."""

    format: str = ""
    file: str = ""
    """Its name, relative to the folder that was read. Never opened again."""
    record: int | None = None
    """Counted from 0 in its file."""
    line: int | None = None
    """Counted from 1; None where the file is one document."""
    id: str | None = None
    """Name of the run."""
    task: str | None = None
    """What was to be done; several runs may share one."""

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
    """How a run ended."""

    reward: float | None = None
    success: bool | None = None
    termination: str | None = None
    """Why it ended, in the words of its source."""

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
    """A whole run. Checked when it is made: all that `Conversation` checks, and the fields above."""

    steps: Sequence[Step]
    tools: Sequence[Tool] = ()
    outcome: Outcome = dataclasses.field(default_factory=Outcome)
    provenance: Provenance = dataclasses.field(default_factory=Provenance)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """JSON values of fields of the record that have no place here."""

    def __post_init__(self):
        _set(self, "steps", tuple(self.steps))
        _set(self, "tools", tuple(self.tools))
        _set(self, "extra", _extra(self.extra))
        self.conversation  # noqa: B018  checks what was said

    @functools.cached_property
    def conversation(self) -> Conversation:
        """What was said, for `maverick_jax.text.chat.render`; message i is that of step i."""
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
    except OverflowError:  # an integer that no float holds
        return False


def _extra(extra: Any) -> dict[str, Any]:
    if not isinstance(extra, Mapping):
        raise InputError(f"extra: expected an object, got {type(extra).__name__}")
    return values.checked(dict(extra), "extra", max_characters=MAX_EXTRA_CHARACTERS, max_items=MAX_EXTRA_ITEMS)


def _set(instance: Any, field: str, value: Any) -> None:
    object.__setattr__(instance, field, value)
