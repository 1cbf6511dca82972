"""Reader of chats whose messages have content parts: those of OpenAI's API and those of Hugging Face, also of agents
whose tool results show pictures."""

from typing import Any

from data.pictures.formats.base import IMAGE_KEYS, Record, RecordContext, list_of
from data.pictures.sample import PLACE, Picture, Sample, SampleProblem
from data.pictures.shelf import from_base64, in_memory

NEEDS = "`messages`, a list of objects with `role` and `content`"
SOURCES = ("image", "path", "url", "base64", "bytes", "image_url")
"""Fields of a part with its picture; a part has one of them, or none and takes the next picture of the record."""
MEDIA = ("video", "video_url", "audio", "input_audio", "input_image", "input_file", "file")
FIELDS = frozenset(("id", "task_id", "messages", "tools", "functions", "reward", "success", *IMAGE_KEYS))


def matches(record: Record) -> bool:
    messages = record.get("messages")
    return isinstance(messages, list) and (not messages or (isinstance(messages[0], dict) and "role" in messages[0]))


def read(record: Record, context: RecordContext) -> Sample:
    """Parts without a picture of their own take those of `images` in order; all of these must be taken."""
    given = context.pictures(record)
    waiting = iter(given)
    found: list[Picture] = []
    messages = [_message(message, f"messages[{i}]", context, waiting, found)
                for i, message in enumerate(list_of(record, "messages"))]  # fmt: skip
    if left := sum(1 for _ in waiting):
        raise SampleProblem("places", f"images: {left} of {len(given)} are shown by no content part")
    body: dict[str, Any] = {"messages": messages}
    body |= {key: record[key] for key in ("tools", "functions", "reward", "success") if record.get(key) is not None}
    return Sample(body, tuple(found))


def _message(message: Any, where: str, context: RecordContext, waiting: Any, found: list[Picture]) -> Any:
    if not isinstance(message, dict):
        raise SampleProblem("record", f"{where}: expected an object, got {type(message).__name__}")
    message = {key: value for key, value in message.items() if value is not None}
    if isinstance(parts := message.get("content"), list):
        message["content"] = [_part(part, f"{where}.content[{i}]", context, waiting, found)
                              for i, part in enumerate(parts)]  # fmt: skip
    return message


def _part(part: Any, where: str, context: RecordContext, waiting: Any, found: list[Picture]) -> Any:
    if not isinstance(part, dict):
        raise SampleProblem("record", f"{where}: expected an object, got {type(part).__name__}")
    part = {key: value for key, value in part.items() if value is not None}
    kind = part.pop("type", None)
    if kind == "text":
        return {"type": "text", **part}
    if kind not in ("image", "image_url"):
        what = "which is not read" if kind in MEDIA else "expected text, image or image_url"
        raise SampleProblem("record", f"{where}.type: {kind!r:.80}, {what}")
    part.pop("detail", None)
    if left := [key for key in part if key not in SOURCES]:
        raise SampleProblem("record", f"{where}.{left[0]:.80}: unknown field; expected one of {', '.join(SOURCES)}")
    if len(part) > 1:
        raise SampleProblem("record", f"{where}: {' and '.join(part)}: two pictures for one place")
    picture = _picture(part, where, context) if part else next(waiting, None)
    if picture is None:
        raise SampleProblem("places", f"{where}: a place without a picture: the record lists too few in `images`")
    found.append(picture)
    return PLACE


def _picture(part: dict[str, Any], where: str, context: RecordContext) -> Picture:
    ((name, value),) = part.items()
    where = f"{where}.{name}"
    if name == "base64":
        if not isinstance(value, str):
            raise SampleProblem("record", f"{where}: expected text, got {type(value).__name__}")
        plain = value.rpartition("base64,")[2] if value[:5].lower() == "data:" else value
        return in_memory(from_base64(plain, where), where)
    if name == "image_url" and isinstance(value, dict):
        value = value.get("url")
    return context.shelf.find(value, where)
