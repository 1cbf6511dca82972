"""Change every text of a trajectory: messages, arguments and unknown fields at any depth, and JSON inside texts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.trajectories.filters.json_text import change_json, is_json
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.text.chat import Message, Tool, ToolCall

SHORTEST_NUMBER = 7
"""Numbers with fewer digits are not changed: no kind of personal data has fewer, and trajectories have long lists of
numbers."""
MAX_JSON_DEPTH = 8
"""Deepest nesting of JSON texts in strings of JSON texts; deeper ones are plain text."""


@dataclasses.dataclass(frozen=True)
class TextWalk:
    """Applies `text` to all plain texts, and calls `name` with texts that stay: keys, tool names, ids, the file."""

    text: Callable[[str], str]
    name: Callable[[str], None]

    def trajectory(self, trajectory: Trajectory) -> Trajectory:
        """`trajectory` with its texts changed; ids, roles, tool names and keys are unchanged."""
        provenance, outcome = trajectory.provenance, trajectory.outcome
        for label in (provenance.id, provenance.file):
            self._label(label)
        return dataclasses.replace(
            trajectory,
            steps=[self._step(step) for step in trajectory.steps],
            tools=[self._tool(tool) for tool in trajectory.tools],
            outcome=dataclasses.replace(outcome, termination=self._optional(outcome.termination)),
            provenance=dataclasses.replace(provenance, task=self._optional(provenance.task)),
            extra=self.value(trajectory.extra),
        )

    def value(self, value: Any) -> Any:
        """Change a JSON value."""
        if isinstance(value, Mapping):
            for key in value:
                self.name(key)
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self.value(item) for item in value]
        if isinstance(value, str):
            return self.any_text(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            old = repr(value)
            new = self.number(old)
            return value if new == old else int(new)
        return value

    def any_text(self, text: str, depth: int = 0) -> str:
        """Change a text; if it is JSON, change the values in it."""
        if depth < MAX_JSON_DEPTH and is_json(text):
            return change_json(text, lambda inner: self.any_text(inner, depth + 1), self.number, self.name)
        return self.text(text)

    def number(self, written: str) -> str:
        """Change a JSON number. A whole number is treated as its digits, however it is written."""
        value = float(written) if written.lstrip("-").isdecimal() is False else None
        if value is not None and not (value.is_integer() and abs(value) < 1e19):
            return written
        digits = written if value is None else str(int(value))
        if len(digits) < SHORTEST_NUMBER:
            return written
        new = self.text(digits)
        return written if new == digits or not new.lstrip("-").isdecimal() else new

    def _step(self, step: Step) -> Step:
        return dataclasses.replace(step, message=self._message(step.message), extra=self.value(step.extra))

    def _message(self, message: Message) -> Message:
        self._label(message.call_id)
        parts = [self.any_text(part) if isinstance(part, str) else part for part in message.parts]
        calls = [self._call(call) for call in message.calls]
        return dataclasses.replace(message, parts=parts, calls=calls, thought=self.any_text(message.thought))

    def _call(self, call: ToolCall) -> ToolCall:
        self._label(call.id)
        self.name(call.name)
        return dataclasses.replace(call, arguments=self.value(call.arguments))

    def _tool(self, tool: Tool) -> Tool:
        self.name(tool.name)
        parameters = self.value(tool.parameters)
        return dataclasses.replace(tool, description=self.any_text(tool.description), parameters=parameters)

    def _optional(self, text: str | None) -> str | None:
        return None if text is None else self.any_text(text)

    def _label(self, text: str | None) -> None:
        if text is not None:
            self.name(text)
