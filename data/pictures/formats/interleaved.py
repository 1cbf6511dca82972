"""Readers of documents in which pictures stand between texts: OBELICS' and MMC4's formats, and captions."""

from typing import Any

from data.order import derive
from data.pictures.formats.base import Record, RecordContext, document, list_of, text_of
from data.pictures.sample import Picture, Sample, SampleProblem

OBELICS_NEEDS = "`texts` and `images`, two lists of which exactly one has a value at each place"
OBELICS_FIELDS = frozenset(("images", "texts", "metadata", "general_metadata", "id"))
MMC4_NEEDS = "`text_list` and `image_info`, a list of objects with `image_name` and `matched_text_index`"
MMC4_FIELDS = frozenset(("text_list", "image_info", "similarity_matrix", "url", "could_have_url_duplicate"))
CAPTION_NEEDS = "`caption`, of a picture beside it in an archive"
CAPTION_FIELDS = frozenset(("caption",))
BETWEEN_TEXTS = "\n\n"
"""Between two texts of a document without a picture between them."""


def is_obelics(record: Record) -> bool:
    return isinstance(record.get("texts"), list) and isinstance(record.get("images"), list)


def read_obelics(record: Record, context: RecordContext) -> Sample:
    """The pictures are local copies, named after their addresses (`Shelf.at_address`)."""
    texts, images = list_of(record, "texts"), list_of(record, "images")
    if len(texts) != len(images):
        raise SampleProblem("places", f"texts: {len(texts)} entries, images: {len(images)}; expected as many")
    parts: list[str | Picture] = []
    for i, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None):
            raise SampleProblem("places", f"texts[{i}], images[{i}]: expected exactly one of the two to be null")
        if image is not None:
            parts.append(context.shelf.at_address(image, f"images[{i}]"))
        elif not isinstance(text, str):
            raise SampleProblem("record", f"texts[{i}]: expected text, got {type(text).__name__}")
        else:
            parts.append(text)
    if context.options.documents == "whole":
        parts = _joined(parts, BETWEEN_TEXTS)
    return document(parts, context.options)


def is_mmc4(record: Record) -> bool:
    return isinstance(record.get("text_list"), list) and isinstance(record.get("image_info"), list)


def read_mmc4(record: Record, context: RecordContext) -> Sample:
    """Pictures stand beside the sentence that they match. Pictures of one sentence stay in their order."""
    sentences = list_of(record, "text_list")
    if not all(isinstance(sentence, str) for sentence in sentences):
        raise SampleProblem("record", "text_list: expected texts")
    beside: dict[int, list[Picture]] = {}
    for i, info in enumerate(list_of(record, "image_info")):
        if (found := _matched(info, f"image_info[{i}]", len(sentences), context)) is not None:
            at, picture = found
            beside.setdefault(at, []).append(picture)
    parts: list[str | Picture] = []
    for i, sentence in enumerate(sentences):
        pictures, side = beside.get(i, []), context.options.mmc4.placement
        if side == "random":
            side = ("before", "after")[derive(0, "side", sentence) % 2]
        parts += [*pictures, sentence] if side == "before" else [sentence, *pictures]
    if context.options.documents == "whole":
        parts = _joined(parts, " ")
    return document(parts, context.options)


def _matched(info: Any, where: str, count: int, context: RecordContext) -> tuple[int, Picture] | None:
    if not isinstance(info, dict):
        raise SampleProblem("record", f"{where}: expected an object, got {type(info).__name__}")
    at, similarity = info.get("matched_text_index"), info.get("matched_sim", 1.0)
    if type(at) is not int or not 0 <= at < count:
        raise SampleProblem("places", f"{where}.matched_text_index: {at!r:.40}; expected 0 to {count - 1}")
    if isinstance(similarity, bool) or not isinstance(similarity, int | float):
        raise SampleProblem("record", f"{where}.matched_sim: expected a number, got {type(similarity).__name__}")
    if not similarity >= context.options.mmc4.min_similarity:  # also of NaN
        return None
    return at, context.shelf.find(info.get("image_name"), f"{where}.image_name")


def is_caption(record: Record) -> bool:
    return isinstance(record.get("caption"), str)


def read_caption(record: Record, context: RecordContext) -> Sample:
    """The pictures beside a text in an archive, and then the text."""
    if not context.beside:
        raise SampleProblem("missing", "caption: no picture beside it")
    return document([*context.beside, text_of(record, "caption")], context.options)


def _joined(parts: list[str | Picture], between: str) -> list[str | Picture]:
    """`parts` with texts that follow each other as one."""
    joined: list[str | Picture] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(last := joined[-1], str):
            joined[-1] = f"{last}{between}{part}"
        else:
            joined.append(part)
    return joined
