"""The formats of samples with pictures, by name."""

from typing import Any

from data.pictures.formats import chat_parts, interleaved, questions, tagged_chat
from data.pictures.formats.base import Context, Format, Mmc4Config
from data.pictures.sample import SampleProblem

__all__ = ["FORMATS", "Context", "Format", "Mmc4Config", "detect"]

_TAGGED = (tagged_chat.NEEDS, tagged_chat.matches, tagged_chat.read, tagged_chat.FIELDS)
FORMATS = {
    form.name: form
    for form in (
        Format("llava", *_TAGGED),
        Format("sharegpt", *_TAGGED),
        Format("openai", chat_parts.NEEDS, chat_parts.matches, chat_parts.read, chat_parts.FIELDS),
        Format("obelics", interleaved.OBELICS_NEEDS, interleaved.is_obelics, interleaved.read_obelics,
               interleaved.OBELICS_FIELDS),
        Format("mmc4", interleaved.MMC4_NEEDS, interleaved.is_mmc4, interleaved.read_mmc4, interleaved.MMC4_FIELDS),
        Format("chartqa", questions.CHARTQA_NEEDS, questions.is_chartqa, questions.read_chartqa,
               questions.CHARTQA_FIELDS),
        Format("docvqa", questions.DOCVQA_NEEDS, questions.is_docvqa, questions.read_docvqa, questions.DOCVQA_FIELDS),
        Format("caption", interleaved.CAPTION_NEEDS, interleaved.is_caption, interleaved.read_caption,
               interleaved.CAPTION_FIELDS),
    )
}  # fmt: skip
"""In the order in which they are tried."""


def detect(record: dict[str, Any]) -> Format:
    """The format of a record, by its fields. Raises SampleProblem that lists those that were tried."""
    if (found := next((form for form in FORMATS.values() if form.matches(record)), None)) is not None:
        return found
    tried = "; ".join(f"{form.name}: {form.needs}" for form in FORMATS.values() if form.name != "sharegpt")
    has = ", ".join(f"{name!r:.40}" for name in list(record)[:12]) or "no fields"
    raise SampleProblem("record", f"unknown format: it has {has}. Tried {tried}")
