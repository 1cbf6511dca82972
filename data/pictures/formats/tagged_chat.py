"""Reader of LLaVA's and ShareGPT's chats: `<image>` in a text is the place of the next picture of `image` or `images`.

A line break directly after `<image>`, or before one that ends the text, only separates the two and is no part of the
text.
"""

from typing import Any

from data.pictures.formats.base import IMAGE_KEYS, Record, RecordContext, list_of
from data.pictures.sample import PLACE, Sample, SampleProblem, as_problems
from data.trajectories.meaning import refuse_placeholder
from maverick_jax.settings.section import did_you_mean

NEEDS = "`conversations` (or `messages` with `image` or `images`), a list of turns whose values are text"
TAG = "<image>"
ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
         "chatgpt": "assistant"}  # fmt: skip
FIELDS = frozenset(("id", "conversations", "messages", "system", *IMAGE_KEYS))


def matches(record: Record) -> bool:
    if isinstance(record.get("conversations"), list):
        return True
    messages = record.get("messages")
    has_pictures = any(record.get(key) is not None for key in IMAGE_KEYS)
    texts = isinstance(messages, list) and all(
        isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages
    )
    return texts and has_pictures


def read(record: Record, context: RecordContext) -> Sample:
    """Raises SampleProblem if there are not as many `<image>` in all turns together as pictures. A record without
    pictures may speak of `<image>` inside a line."""
    pictures = context.pictures(record)
    messages = []
    if record.get("system") is not None:
        if not isinstance(record["system"], str):
            raise SampleProblem("record", f"system: expected text, got {type(record['system']).__name__}")
        messages.append({"role": "system", "content": record["system"]})
    name = "conversations" if "conversations" in record else "messages"
    for i, turn in enumerate(list_of(record, name)):
        role, text = _turn(turn, f"{name}[{i}]")
        if not pictures and role == "user":
            with as_problems("places"):
                refuse_placeholder(text)
        messages.append({"role": role, "content": _content(text) if pictures else text})
    return Sample({"messages": messages}, tuple(pictures))


def _turn(turn: Any, where: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise SampleProblem("record", f"{where}: expected an object, got {type(turn).__name__}")
    speaker, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(speaker, str) or speaker not in ROLES:
        near = did_you_mean(speaker, ROLES) if isinstance(speaker, str) and len(speaker) < 80 else ""
        raise SampleProblem("record", f"{where}.from: {speaker!r:.80}; expected one of {', '.join(ROLES)}{near}")
    if not isinstance(text, str):
        raise SampleProblem("record", f"{where}.value: expected text, got {type(text).__name__}")
    if left := [key for key in turn if key not in ("from", "role", "value", "content") and turn[key] is not None]:
        raise SampleProblem("record", f"{where}.{left[0]:.80}: unknown field; expected from and value")
    return ROLES[speaker], text


def _content(text: str) -> str | list[dict[str, Any]]:
    first, *others = text.split(TAG)
    if not others:
        return text
    texts = [first, *(other.removeprefix("\n") for other in others)]
    if not texts[-1]:
        texts[-2] = texts[-2].removesuffix("\n")
    parts: list[dict[str, Any]] = []
    for i, piece in enumerate(texts):
        parts += [PLACE] if i else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts
