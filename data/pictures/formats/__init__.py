"""The formats of samples with pictures, by name."""

from typing import Any

from data.pictures.formats import chat_parts, questions, tagged_chat
from data.pictures.formats import interleaved as i
from data.pictures.formats.base import Mmc4Config, PictureFormat, RecordContext
from data.pictures.sample import SampleProblem

__all__ = ["FORMATS", "Mmc4Config", "PictureFormat", "RecordContext", "detect"]

_READERS = {
    "llava": (tagged_chat.NEEDS, tagged_chat.matches, tagged_chat.read, tagged_chat.FIELDS),
    "sharegpt": (tagged_chat.NEEDS, tagged_chat.matches, tagged_chat.read, tagged_chat.FIELDS),
    "openai": (chat_parts.NEEDS, chat_parts.matches, chat_parts.read, chat_parts.FIELDS),
    "obelics": (i.OBELICS_NEEDS, i.is_obelics, i.read_obelics, i.OBELICS_FIELDS),
    "mmc4": (i.MMC4_NEEDS, i.is_mmc4, i.read_mmc4, i.MMC4_FIELDS),
    "chartqa": (questions.CHARTQA_NEEDS, questions.is_chartqa, questions.read_chartqa, questions.CHARTQA_FIELDS),
    "docvqa": (questions.DOCVQA_NEEDS, questions.is_docvqa, questions.read_docvqa, questions.DOCVQA_FIELDS),
    "caption": (i.CAPTION_NEEDS, i.is_caption, i.read_caption, i.CAPTION_FIELDS),
}
FORMATS = {name: PictureFormat(name, *of_format) for name, of_format in _READERS.items()}
"""In the order in which they are tried."""


def detect(record: dict[str, Any]) -> PictureFormat:
    """The format of a record, by its fields. Raises SampleProblem that lists those that were tried."""
    if (found := next((form for form in FORMATS.values() if form.matches(record)), None)) is not None:
        return found
    tried = "; ".join(f"{form.name}: {form.needs}" for form in FORMATS.values() if form.name != "sharegpt")
    has = ", ".join(f"{name!r:.40}" for name in list(record)[:12]) or "no fields"
    raise SampleProblem("record", f"unknown format: it has {has}. Tried {tried}")
