"""What the readers of formats get besides the record."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from data.order import derive
from data.pictures.sample import PLACE, Picture, Sample, SampleProblem
from data.pictures.shelf import Shelf
from maverick_jax.settings.section import Section

Record = dict[str, Any]
IMAGE_KEYS = ("image", "images")
"""Fields of a record with its pictures."""


class Mmc4Config(Section):
    """How pictures are placed in documents of MMC4's format."""

    placement: Literal["before", "after", "random"] = "before"
    """Side of its sentence on which a picture stands. `random`: either, the same one every time."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Pictures that are less similar to their sentence are left out."""


class Options(Protocol):
    """The part of a source's config that readers need."""

    documents: Literal["whole", "last_text"]
    mmc4: Mmc4Config


@dataclasses.dataclass(frozen=True)
class RecordContext:
    """What a reader gets besides the record."""

    shelf: Shelf
    options: Options
    beside: tuple[Picture, ...] = ()
    """Pictures beside the record in an archive, for records that name none."""

    def pictures(self, record: Record) -> list[Picture]:
        """The pictures that a record lists under `image` or `images`, or those beside it."""
        given = [key for key in IMAGE_KEYS if record.get(key) not in (None, "", [])]
        if len(given) > 1:
            raise SampleProblem("record", "image: `images` has pictures too; expected one of the two")
        if not given:
            return list(self.beside)
        values = record[given[0]]
        values = values if isinstance(values, list) else [values]
        return [self.shelf.find(value, f"{given[0]}[{i}]") for i, value in enumerate(values)]


@dataclasses.dataclass(frozen=True)
class PictureFormat:
    """A format of records."""

    name: str
    needs: str
    """The fields by which a record is recognized, for messages."""
    matches: Callable[[Record], bool]
    read: Callable[[Record, RecordContext], Sample]
    """Raises SampleProblem."""
    fields: frozenset[str]
    """Fields of a record that have an effect, or only name it."""


def text_of(record: Record, name: str) -> str:
    """The text of a field. Raises SampleProblem if there is none."""
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        what = "missing" if name not in record else "empty" if isinstance(value, str) else type(value).__name__
        raise SampleProblem("record", f"{name}: expected text, is {what}")
    return value


def list_of(record: Record, name: str) -> list[Any]:
    """The list of a field. Raises SampleProblem if there is none."""
    if not isinstance(value := record.get(name), list):
        raise SampleProblem("record", f"{name}: expected a list, got {type(value).__name__}")
    return value


def question(pictures: list[Picture], asked: str, answer: str) -> Sample:
    """A conversation of one question about pictures, which stand before it, and its answer."""
    content = [*[PLACE] * len(pictures), {"type": "text", "text": asked}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return Sample({"messages": messages}, tuple(pictures))


def document(parts: list[str | Picture], options: Options) -> Sample:
    """A document of texts and pictures. With `documents: last_text` it is a conversation in which the last text answers
    everything before it. Raises SampleProblem for a document without text, or, then, one that does not end in text."""
    pictures = tuple(part for part in parts if isinstance(part, Picture))
    if not any(isinstance(part, str) and part.strip() for part in parts):
        raise SampleProblem("record", "a document without text; expected some to learn")
    if options.documents == "whole":
        return Sample({"document": [part if isinstance(part, str) else None for part in parts]}, pictures)
    *before, answer = parts
    if not isinstance(answer, str) or not before:
        raise SampleProblem("record", "a document that does not end in a text after others; `documents: last_text` "
                                      "learns such a text")  # fmt: skip
    content = [{"type": "text", "text": part} if isinstance(part, str) else PLACE for part in before]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return Sample({"messages": messages}, pictures)


def one_of(answers: Any, name: str, of: str) -> str:
    """The answer to learn, a text or one of several. Which one depends only on the question, `of`."""
    given = answers if isinstance(answers, list) else [answers]
    is_number = lambda a: isinstance(a, int | float) and not isinstance(a, bool)
    texts = [str(a) for a in given if is_number(a) or (isinstance(a, str) and a.strip())]
    if not texts or len(texts) < len(given):
        raise SampleProblem("record", f"{name}: expected a text, or several in a list")
    return texts[derive(0, "answer", of) % len(texts)]
