"""Who has said a value: the user, the system message, or a result of a tool."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from data.trajectories.actions import Action
from data.trajectories.trajectory import Trajectory
from maverick_jax.text.chat import Role, values

PERSON = ""
"""The speaker of user and system messages. The speaker of a result is its tool."""
LONGEST = 256
"""Most characters of a value that is looked up; longer texts are looked up by the identifiers in them."""
_WORD = re.compile(r"[\w@#/+][\w@#/+.:'-]*")
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")


class Said(NamedTuple):
    """One saying of a value."""

    step: int
    speaker: str
    """`PERSON`, or the name of the tool whose result it is."""


def texts_of(value: Any) -> Iterator[str]:
    """The scalars in a JSON value as texts: 1 and 1.0 are equal, true, false and null are left out."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from texts_of(item)
    elif isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield number(value)


def number(value: float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def words_of(text: str) -> Iterator[str]:
    """The words of a text, without marks at their end; 1,200 also as 1200."""
    for match in _WORD.finditer(text):
        yield match[0].rstrip(".:'-")
    for match in _GROUPED.finditer(text):
        yield match[0].replace(",", "")


def identifiers_of(text: str) -> Iterator[str]:
    """The text itself, or its words if it is a sentence, as far as they look like identifiers: 4 characters or more
    with a digit or one of `@ _ / #`."""
    for word in [text] if " " not in text else words_of(text):
        if 4 <= len(word) <= LONGEST and re.search(r"[\d@_/#]", word):
            yield word


class Speakers:
    """An index of what users, system messages and results say in a run, in one pass."""

    def __init__(self, run: Trajectory, actions: Sequence[Action]):
        tools = {action.result: action.call.name for action in actions if action.result is not None}
        self._words: dict[str, list[Said]] = {}
        self._texts: list[tuple[Said, str]] = []
        for i, step in enumerate(run.steps):
            if step.message.role is Role.ASSISTANT:
                continue
            said = Said(i, tools.get(i, PERSON) if step.message.role is Role.TOOL else PERSON)
            self._texts.append((said, step.message.text))
            for word in {*words_of(step.message.text), *_scalars(step.message.text)}:
                self._words.setdefault(word, []).append(said)

    def of(self, value: str, before: int) -> list[Said]:
        """Who said `value`, a text as `texts_of` gives it, in messages before `before`, first sayings first."""
        found = self._words.get(value)
        if found is None and re.search(r"\W", value):
            found = [said for said, text in self._texts if value in text]
        return [said for said in found or () if said.step < before]


def _scalars(text: str) -> Iterator[str]:
    """The scalars of a text that is JSON."""
    parsed = parsed_json(text)
    return iter(()) if parsed is None else (scalar for scalar in texts_of(parsed) if len(scalar) <= LONGEST)


def parsed_json(text: str) -> Any:
    """The object or list that the text is as JSON; None: it is none."""
    if text.lstrip()[:1] not in ("{", "[") or len(text) > values.MAX_CHARACTERS:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
