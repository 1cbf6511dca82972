"""Build the steps of a trajectory: match results to their calls, and refuse messages that are out of place."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data.trajectories import tagged
from data.trajectories.meaning import refuse_placeholder
from data.trajectories.trajectory import Step
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Image, Message, Role, Tool, ToolCall
from maverick_jax.text.chat.openai import arguments_of


@dataclasses.dataclass
class _Open:
    """The calls of one message, and their results so far."""

    where: str
    calls: list[ToolCall]
    results: list[Step | None]


class StepBuilder:
    """Collects steps. Results of parallel calls may come in any order if they name their calls, by id or by tool; they
    are sorted by the order of the calls, since no chat format writes which call a result answers. Calls that an
    assistant message has as tagged text become calls (`data.trajectories.tagged`)."""

    def __init__(self, tools: Sequence[Tool] = (), images: Iterator[Image] | None = None):
        """`images` take the places of image parts, in order; None: trajectories without pictures."""
        self.images = images
        self.tools = {tool.name: tool for tool in tools}
        """Declared tools, for formats that need them to read calls."""
        self.steps: list[Step] = []
        self._open: _Open | None = None

    def waiting(self) -> int:
        """Number of calls without a result so far."""
        return self._open.results.count(None) if self._open else 0

    def add(self, where: str, message: Message, *, called: str | None = None, **notes: Any) -> None:
        """Append a message. `notes`: fields of `Step`; `called`: name of the tool in a result, if given. Raises
        InputError beginning with `where` for a message that is out of place."""
        if message.role is Role.USER and self.images is None:
            at(where, lambda: refuse_placeholder(message.text))
        message = at(where, lambda: _without_tags(message, notes.get("weight")))
        step = at(where, lambda: Step(message, **notes))
        if message.role is Role.TOOL:
            self._answer(where, step, called)
            return
        if not message.calls and not message.thought and not any(map(_has_content, message.parts)):
            raise InputError(f"{where}: an empty turn: no text and no call")
        if message.role is Role.SYSTEM and (self.steps or self._open):
            raise InputError(f"{where}: role: only the first message may be a system message")
        self._close(where)
        self.steps.append(step)
        if message.calls:
            _different_ids(where, message)
            self._open = _Open(where, list(message.calls), [None] * len(message.calls))

    def finish(self) -> list[Step]:
        """All steps. The last calls of a trajectory may have no results."""
        self._close(None)
        if not any(step.message.role is Role.ASSISTANT for step in self.steps):
            raise InputError("messages: no message of the assistant" if self.steps else "messages: empty")
        return self.steps

    def _answer(self, where: str, step: Step, called: str | None) -> None:
        if not self.waiting() or self._open is None:
            raise InputError(f"{where}: a tool result, but every call before it already has one")
        at_call = self._call_of(where, step.message.call_id, called)
        call = self._open.calls[at_call]
        if called is not None and called != call.name:
            raise InputError(f"{where}: name: {called!r:.80}; expected {call.name!r:.80}, the tool that was called")
        if call.id is not None and step.message.call_id not in (None, call.id):  # the tool's name in place of the id
            step = dataclasses.replace(step, message=dataclasses.replace(step.message, call_id=call.id))
        self._open.results[at_call] = step

    def _call_of(self, where: str, call_id: str | None, called: str | None) -> int:
        """Index of the call that a result answers: by its id, or else by the tool's name, or else the first without a
        result."""
        assert self._open is not None
        empty = [i for i, result in enumerate(self._open.results) if result is None]
        ids, names = ([getattr(self._open.calls[i], field) for i in empty] for field in ("id", "name"))
        if call_id in ids and call_id is not None:
            return empty[ids.index(call_id)]
        if call_id in names:
            return empty[names.index(call_id)]
        if call_id is None or all(known is None for known in ids):
            return empty[names.index(called) if called in names else 0]
        waiting = ", ".join(f"{known!r:.80}" for known in ids[:4])
        raise InputError(f"{where}: tool_call_id: {call_id!r:.80}; expected a call without a result ({waiting})")

    def _close(self, where: str | None) -> None:
        """Append the results of the open calls. `where`: the message after them; None at the end."""
        if self._open is None:
            return
        found = [result for result in self._open.results if result is not None]
        complete = len(found) == len(self._open.calls)
        ended = where is None and self._open.results[: len(found)] == found
        if not complete and not ended:
            missing = self._open.results.index(None)
            after = f" before {where}" if where else ""
            raise InputError(f"{self._open.where}: call {missing} ({self._open.calls[missing].name!r:.80}) has no "
                             f"result{after}")  # fmt: skip
        self.steps += found
        self._open = None


def at(where: str, make: Callable[[], Any]) -> Any:
    """`make()`; errors are prefixed with `where`."""
    try:
        return make()
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from None


def tool_call(name: Any, arguments: Any, call_id: str | None = None) -> ToolCall:
    """A call whose arguments are an object or its JSON text, or null, an empty text or null as text if there are none.
    Raises InputError beginning with `arguments`."""
    return ToolCall(name, {} if arguments is None else arguments_of(arguments, "arguments"), call_id)


def _without_tags(message: Message, weight: float | None) -> Message:
    """`message` with calls in place of tagged text. What cannot be read stays text in a message that is not learned
    (`weight` 0), and is an error elsewhere."""
    if message.role is not Role.ASSISTANT or not all(isinstance(part, str) for part in message.parts):
        return message
    try:
        text, calls = tagged.take_calls(message.text)
        if calls and message.calls:
            raise InputError(f"content: {message.text[len(text) :].strip()[:40]!r}: calls as text beside `tool_calls`")
    except InputError:
        if weight == 0:
            return message
        raise
    return dataclasses.replace(message, parts=text, calls=calls) if calls else message


def _has_content(part: str | Image) -> bool:
    return not isinstance(part, str) or bool(part.strip())


def _different_ids(where: str, message: Message) -> None:
    ids = [call.id for call in message.calls if call.id is not None]
    if len(set(ids)) < len(ids):
        raise InputError(f"{where}: tool_calls: two calls of one message have the same id")
