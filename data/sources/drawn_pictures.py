"""Conversations about pictures that are drawn from a seed (`data.pictures.drawn`)."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from data.pictures.drawn import BARS, DrawnPicture, Subject, blank, draw, encoded
from data.pictures.reading import SampleTally
from data.pictures.sample import PLACE, Sample, Where
from data.pictures.shelf import in_memory
from data.sources.base import Positive
from data.sources.pictures import PictureSource

Bars = Annotated[int, Field(ge=1, le=BARS)]
LAYOUT = 2
"""Changes whenever equal settings would give other samples."""


class DrawnPicturesSource(PictureSource):
    """`kind: drawn_pictures`: conversations about charts and scenes that are drawn from a seed."""

    kind: Literal["drawn_pictures"] = "drawn_pictures"
    """Conversations about drawn pictures."""
    format: Annotated[Literal["drawn_pictures"], Field(exclude=True)] = "drawn_pictures"
    """The same as `kind: drawn_pictures`."""
    subjects: Annotated[tuple[Subject, ...], Field(min_length=1, strict=False)] = ("charts", "scenes")
    """What the pictures show, in turn. `charts`: bars whose heights are asked for; `scenes`: things whose colors and
    places are asked for."""
    pictures: Positive = 1000
    """Number of pictures."""
    questions: Annotated[int, Field(ge=1, le=6)] = 3
    """Number of questions about each picture; a conversation has all of them."""
    describe: bool = False
    """Whether everything in a picture is asked for at once, from left to right, instead of `questions` about its
    parts."""
    bars: Annotated[tuple[Bars, ...], Field(min_length=1, strict=False)] = (BARS,)
    """Numbers of bars of charts, in turn; a chart has four places for them. Fewer bars make easier questions."""
    side: Annotated[int, Field(ge=28, le=4096)] = 56
    """Width and height of the pictures, in pixels."""
    blank: bool = False
    """Whether all pictures are white, although questions and answers are the same: what can be learned without
    seeing."""
    corpus_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the pictures; their order follows from the run's seed."""

    def identity(self, name: str) -> list:
        settings = {"subjects", "pictures", "questions", "describe", "bars", "side", "blank", "corpus_seed"}
        return ["drawn", LAYOUT, self.model_dump(mode="json", include=settings)]

    def drawn(self, number: int) -> DrawnPicture:
        """Picture `number`, as it is before `blank`."""
        turn, subject = divmod(number, len(self.subjects))
        return draw(self.corpus_seed, number, self.subjects[subject], self.side, self.bars[turn % len(self.bars)])

    def samples(self, name: str, tally: SampleTally) -> Iterator[tuple[Where, Sample]]:
        tally.files = 1
        white = encoded(blank(self.side))
        for number in range(self.pictures):
            tally.records += 1
            found = self.drawn(number)
            messages = []
            for asked, answer in [found.description] if self.describe else found.questions[: self.questions]:
                messages += [{"role": "user", "content": [{"type": "text", "text": asked}]},
                             {"role": "assistant", "content": answer}]  # fmt: skip
            messages[0]["content"].insert(0, PLACE)
            picture = in_memory(white if self.blank else encoded(found.image), f"picture {number}")
            yield Where(f"{name} (drawn)", number), Sample({"messages": messages}, (picture,))
