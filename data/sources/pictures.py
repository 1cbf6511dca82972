"""Samples with pictures, read from files or drawn (docs/guides/pictures.md)."""

import abc
import pathlib
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.pictures.formats import Mmc4Config
from data.pictures.reading import SampleTally, read_samples
from data.pictures.sample import Sample, Where
from data.sources.base import SourceConfig
from data.sources.files import PathSource
from data.trajectories.files import LINES
from maverick_jax.errors import InputError


class PictureSource(SourceConfig, abc.ABC):
    """The base of sources of samples with pictures."""

    dialect: Literal["meta_pythonic", "meta_json", "hugging_face"] | None = None
    """Dialect in which tools and calls are written. null: the dialect of the tokenizer's model, or else
    meta_pythonic."""
    malformed: Literal["stop", "skip"] = "stop"
    """What happens with a sample that cannot be used, such as one with a damaged picture. `stop`: an error; `skip`: it
    is logged, counted by reason and skipped."""
    too_long: Literal["windows", "fewer_tiles", "refuse"] = "windows"
    """What happens with a sample that is longer than a row. `fewer_tiles`: its pictures get the greatest `max_tiles`
    with which it fits, and if none does, it is refused; `windows`: if none does, it is cut between turns, and never
    inside a picture; `refuse`: it is refused, as a malformed sample."""
    fewest_tiles: Annotated[int, Field(ge=1, le=256)] = 4
    """The smallest `max_tiles` that the pictures of a sample get so that it fits into a row whole."""
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.25
    """For samples that are cut: the fraction of a window, not counting system message and tools, that may repeat turns
    before the cut. Repeated turns have no loss weight."""

    @abc.abstractmethod
    def identity(self, name: str) -> list:
        """Values, as JSON has them, that change whenever the samples may have changed. `name`: of the source."""

    @abc.abstractmethod
    def samples(self, name: str, tally: SampleTally) -> Iterator[tuple[Where, Sample]]:
        """The samples in order, with the places of their records. Raises InputError."""


class PicturesSource(PathSource, PictureSource):
    """`kind: pictures`: files of conversations and documents with pictures."""

    suffixes: ClassVar = (*LINES, ".json", ".parquet", ".tar")
    compressed_suffixes: ClassVar = (*LINES, ".json")

    kind: Literal["pictures"] = "pictures"
    """Conversations and documents with pictures."""
    format: Literal["llava", "sharegpt", "openai", "obelics", "mmc4", "chartqa", "docvqa", "caption"] | None = None
    """Format of the records, in files of JSON, JSON lines, Parquet or tar (WebDataset). null: the first record of each
    file determines it. `openai`: also chats with Hugging Face's image parts."""
    folder: str | None = None
    """Folder of the pictures that records name by paths. Nothing outside of it is read. null: the folder of each
    file."""
    documents: Literal["whole", "last_text"] = "whole"
    """How documents (OBELICS, MMC4, captions) are learned. `whole`: begin of text, texts and pictures, end of text,
    with loss on all of the text; `last_text`: as a conversation in which the last text answers everything before it."""
    mmc4: Mmc4Config = Mmc4Config()
    """Where pictures stand in documents of MMC4's format, and which are left out."""

    def identity(self, name: str) -> list:
        settings = [self.format, self.folder and str(self._folder(name)), self.documents, self.mmc4.model_dump()]
        paths = [(path, path.stat()) for path in self.files(name)]
        return [settings, [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in paths]]

    def samples(self, name: str, tally: SampleTally) -> Iterator[tuple[Where, Sample]]:
        return read_samples(self.files(name), self._folder(name), self.format, self, tally)

    def _folder(self, name: str) -> pathlib.Path | None:
        if self.folder is None:
            return None
        folder = pathlib.Path(self.folder).expanduser()
        if not folder.is_dir():
            raise InputError(f"data.sources.{name}.folder: {self.folder}: no such folder")
        return folder.resolve()
