"""A sample: a conversation or a document with places for pictures, and the pictures in reading order."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from maverick_jax.errors import InputError

MAX_PICTURES = 256
"""Most pictures of one sample."""
REASONS = {
    "record": "a record that cannot be read, or with something that has no place in a sample",
    "places": "another number of places for pictures than of pictures",
    "remote": "a picture at an address on a network",
    "outside": "a path that leads out of the folder of pictures",
    "missing": "a picture that is not there",
    "encoding": "a picture as text that cannot be decoded to bytes",
    "picture": "a file that is not a picture, damaged, or beyond the limits of a picture",
    "member": "a member of an archive that is not a plain file, or whose name leads out of it",
    "too_long": "a sample that does not fit into rows",
}
"""Why a sample is refused; they are counted by these names."""
PLACE = {"type": "image"}
"""The content part of a message that stands for the next picture."""


class SampleProblem(InputError):
    """A sample that cannot be used; `reason` is one of `REASONS`."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a sample that is not read yet."""

    name: str
    """Its path or place, for messages."""
    read: Callable[[], bytes]
    """Its encoded bytes. Raises SampleProblem."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sample in the normal form. Raises SampleProblem if places and pictures do not match."""

    body: dict[str, Any]
    """JSON: either `messages`, and `tools` if there are some, as in OpenAI's chat API, with `PLACE` for each picture,
    or `document`, a list of texts with null for each picture."""
    pictures: tuple[Picture, ...] = ()

    def __post_init__(self):
        places, found = count_places(self.body), len(self.pictures)
        if places != found:
            raise SampleProblem("places", f"{places} places for pictures and {found} pictures; expected as many")
        if found > MAX_PICTURES:
            raise SampleProblem("record", f"{found} pictures; expected at most {MAX_PICTURES}")


def count_places(body: dict[str, Any]) -> int:
    """The number of places for pictures in the normal form of a sample."""
    if "document" in body:
        return sum(part is None for part in body["document"])
    contents = [message.get("content") for message in body["messages"] if isinstance(message, dict)]
    return sum(part == PLACE for content in contents if isinstance(content, list) for part in content)


@dataclasses.dataclass(frozen=True)
class Where:
    """The place of a record, for messages."""

    file: str
    record: int
    """Number of the record in its file, from 0."""
    line: int | None = None


@contextlib.contextmanager
def as_problems(reason: str = "record") -> Iterator[None]:
    """Errors of the block become problems of the sample, with `reason` unless they have one."""
    try:
        yield
    except SampleProblem:
        raise
    except InputError as error:
        raise SampleProblem(reason, str(error)) from None
