"""Pictures that are drawn from a seed, with questions whose answers are known: bar charts and small scenes.

Shapes are drawn pixel by pixel without a font, so that equal seeds give equal pixels with every version of Pillow.
Every question has at least nine answers, all about equally frequent, so that it cannot be answered without the picture.
(Later questions of one conversation can be guessed a little better, from the earlier ones.)
"""

import dataclasses
import io
from collections.abc import Iterable
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from data.order import derive

Subject = Literal["charts", "scenes"]
COLORS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 78, 200), "yellow": (240, 200, 20),
          "purple": (130, 50, 180), "orange": (255, 127, 14), "cyan": (70, 210, 230), "magenta": (230, 60, 190),
          "navy": (10, 20, 90)}  # fmt: skip
"""By name; no two names begin with the same letter."""
SHAPES = ("circle", "square", "triangle", "cross")
HIGHEST = 9
"""Bars are 1 to HIGHEST units high."""
BARS, THINGS = 4, 3
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))
"""Names of the nine places of a scene, in reading order."""
WHITE = (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class DrawnPicture:
    """A picture with everything that is asked about it."""

    image: Image.Image
    """RGB."""
    questions: tuple[tuple[str, str], ...]
    """(question, answer) about its parts, in random order."""
    description: tuple[str, str]
    """The one question about everything, with its answer."""


def draw(seed: int, number: int, subject: Subject, side: int, bars: int = BARS) -> DrawnPicture:
    """Picture `number` of those that `seed` gives, of `side` x `side` pixels; a chart has `bars` of BARS bars. Pure."""
    # NumPy guarantees only for the legacy generator that its streams stay the same in all versions.
    random = np.random.RandomState(derive(seed, "drawn", subject, number) % 2**32)
    found = _chart(random, side, bars) if subject == "charts" else _scene(random, side)
    order = random.permutation(len(found.questions))
    return dataclasses.replace(found, questions=tuple(found.questions[i] for i in order))


def encoded(image: Image.Image) -> bytes:
    """The picture as PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def blank(side: int) -> Image.Image:
    """A white picture, for models that must answer without seeing."""
    return Image.new("RGB", (side, side), WHITE)


def _chart(random: np.random.RandomState, side: int, bars: int) -> DrawnPicture:
    """Bars of different colors and heights over lines at every unit."""
    places = sorted(random.permutation(BARS)[:bars].tolist())
    names = [list(COLORS)[i] for i in random.permutation(len(COLORS))[:bars]]
    heights = (1 + random.permutation(HIGHEST)[:bars]).tolist()
    image = blank(side)
    pen = ImageDraw.Draw(image)
    unit, floor, width = (side - 2) // HIGHEST, side - 1, side // BARS
    gap = max(1, width // 6)
    for value in range(HIGHEST + 1):
        pen.line([(0, floor - value * unit), (side - 1, floor - value * unit)], fill=(200, 200, 200))
    for place, name, height in zip(places, names, heights, strict=True):
        left, right = place * width + gap, (place + 1) * width - 1 - gap
        pen.rectangle([left, floor - height * unit, right, floor], fill=COLORS[name])
    ranked = sorted(zip(heights, names, strict=True))
    questions = [(f"How high is {name}?", str(height)) for name, height in zip(names, heights, strict=True)]
    questions += [("Which is highest?", ranked[-1][1]), ("Which is lowest?", ranked[0][1])]
    return DrawnPicture(image, tuple(questions), _described(f"{n} {h}" for n, h in zip(names, heights, strict=True)))


def _scene(random: np.random.RandomState, side: int) -> DrawnPicture:
    """Things of different shapes and colors in different places of a 3 x 3 grid."""
    names = [list(COLORS)[i] for i in random.permutation(len(COLORS))[:THINGS]]
    shapes = [SHAPES[i] for i in random.permutation(len(SHAPES))[:THINGS]]
    places = random.permutation(len(PLACES))[:THINGS].tolist()
    image = blank(side)
    pen = ImageDraw.Draw(image)
    cell, gap = side // 3, max(1, side // 24)
    questions, things = [], {}
    for name, shape, place in zip(names, shapes, places, strict=True):
        row, column = divmod(place, 3)
        _thing(pen, shape, (column * cell + gap, row * cell + gap, (column + 1) * cell - 1 - gap,
                            (row + 1) * cell - 1 - gap), COLORS[name])  # fmt: skip
        questions.append((f"What color is the {shape}?", name))
        questions.append((f"Where is the {shape}?", PLACES[place]))
        things[place] = f"{name} {shape} {PLACES[place]}"
    return DrawnPicture(image, tuple(questions), _described(things[place] for place in sorted(things)))


def _described(parts: Iterable[str]) -> tuple[str, str]:
    return "What is shown?", ", ".join(parts)


def _thing(pen: ImageDraw.ImageDraw, shape: str, box: tuple[int, int, int, int], color: tuple[int, int, int]) -> None:
    left, top, right, bottom = box
    middle, third = (left + right) // 2, (right - left) // 3
    match shape:
        case "circle":
            pen.ellipse(box, fill=color)
        case "square":
            pen.rectangle(box, fill=color)
        case "triangle":
            pen.polygon([(middle, top), (left, bottom), (right, bottom)], fill=color)
        case "cross":
            pen.rectangle((left + third, top, right - third, bottom), fill=color)
            pen.rectangle((left, top + third, right, bottom - third), fill=color)
