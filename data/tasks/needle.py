"""Needle in a haystack: one sentence with a number, at a chosen token of a long text."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from data.compression import open_data
from data.graders.base import Grade, binary
from data.graders.figures import Figure, figure
from data.graders.grids import Grid, grid_of
from data.graders.matching import differs
from data.tasks.base import Example, Graded, Task, TaskInfo
from data.tasks.prompts import chat_prompt
from data.tasks.reading import existing
from maverick_jax.errors import InputError
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Kind, Reply, render

FILLER = (
    "The road runs along the river for a while.", "A cart stands at the gate.", "Nobody has mended the wall yet.",
    "The market opens early on most days.", "Rain is expected by the evening.", "Some of the lamps are lit already.",
    "Two boats lie at the quay.", "The baker counts the loaves again.",
)  # fmt: skip
CITIES = ("Lisbon", "Oslo", "Quito", "Hanoi", "Nairobi", "Perth", "Dakar", "Turin")
NEEDLE = "The secret number of {city} is {number}."
ASK = "What is the secret number of {city}? Answer with the number alone."
ENDS = ("\n", ".\n", " .\n", " . .\n", " a\n", "- .\n", "\n\n", " ,.\n")
"""Ends of a line of marks, with different numbers of tokens."""
LEAD = "Read the text and answer the question below it.\n\n"
MAX_FILLER = 1 << 26
Share = Annotated[float, Field(ge=0, le=1)]
Length = Annotated[int, Field(ge=256, le=1 << 24)]


class Place(NamedTuple):
    """Where a needle is."""

    length: int
    """Tokens of the whole prompt, about."""
    position: int
    """Token of the prompt at which the needle begins."""
    name: str
    """For figures, such as `depth 0.50` or `before chunk`."""
    depth: float | None = None
    """None: the place is next to a border."""


class Needle(Task):
    """`kind: needle`: a needle in a haystack, at any length and depth, also next to the borders of attention chunks."""

    kind: Literal["needle"] = "needle"
    """A needle in a haystack."""
    lengths: Annotated[tuple[Length, ...], Field(min_length=1)] = (8192,)
    """Lengths of the prompt in tokens of the model's tokenizer."""
    depths: tuple[Share, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where the needle is put: 0 is before the haystack, 1 behind it."""
    chunk: Annotated[int, Field(ge=1)] | None = None
    """Also put needles so that they begin one token before, at, and one token behind multiples of this number, the
    model's attention_chunk_size. null: no such needles."""
    borders: Annotated[int, Field(ge=1)] = 4
    """Number of multiples of `chunk` for each length, evenly spread."""
    count: Annotated[int, Field(ge=1, le=100_000)] = 4
    """Number of examples at each place."""
    haystack: str | None = None
    """A text file that the haystack is taken from. null: made-up sentences."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the numbers."""
    max_tokens: Annotated[int, Field(ge=1)] = 32
    """Maximum number of tokens in an answer."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo(self.haystack or "generated from a seed", "unknown" if self.haystack else "Apache-2.0")

    def examples(self) -> list[Example]:
        raise InputError("kind: needle: its examples depend on a tokenizer; expected `examples_for`")

    def examples_for(self, tokenizer: Tokenizer) -> list[Example]:
        """Examples whose lengths and places are counted in tokens of `tokenizer`."""
        filler, before = self._filler(), _tokens_before(tokenizer)
        builder = _Haystack(tokenizer, filler, before)
        found = []
        for number in range(self.count):
            draw = random.Random(f"needle {self.seed} {number}")
            city, secret = draw.choice(CITIES), str(draw.randint(1_000_000, 9_999_999))
            for place in self._places(before):
                text, position = builder.text(place, NEEDLE.format(city=city, number=secret))
                prompt = chat_prompt(f"{LEAD}{text}\n\n{ASK.format(city=city)}")
                facts = {"length": place.length, "place": place.name, "depth": place.depth}
                facts |= {"position": position, "wanted": place.position}
                name = f"{place.length} {place.name} at {place.position} {number}"
                found.append(Example(name, prompt, (secret,), group=str(number), facts=facts))
        return found

    def _places(self, before: int) -> Iterator[Place]:
        for length in self.lengths:
            last = length - before - 128  # the needle, the question and the next header follow
            for depth in self.depths:
                yield Place(length, before + round(depth * last), f"depth {depth:.2f}", depth)
            if self.chunk is not None:
                multiples = range(self.chunk, length - 128, self.chunk)
                multiples = [m for m in multiples if m - 1 > before]
                chosen = np.linspace(0, len(multiples) - 1, min(self.borders, len(multiples))).round().astype(int)
                for multiple, (shift, name) in itertools.product(
                    [multiples[i] for i in chosen], ((-1, "before"), (0, "at"), (1, "behind"))
                ):
                    yield Place(length, multiple + shift, f"{name} chunk")

    def _filler(self) -> list[str]:
        if self.haystack is None:
            draw = random.Random(f"needle haystack {self.seed}")
            return [draw.choice(FILLER) for _ in range(4096)]
        with open_data(existing(self.haystack)) as file:
            text = file.read(MAX_FILLER).decode("utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise InputError(f"{self.haystack}: holds no text")
        return lines

    def grade(self, example: Example, reply: Reply) -> Grade:
        (secret,) = example.references
        return binary(secret in reply.text.replace(",", ""), differs(reply.text, [secret]), bool(reply.text.strip()))

    def figures(self, graded: Sequence[Graded]) -> dict[str, Figure]:
        """The score of each length, and of each place."""
        found: dict[str, list[tuple[float, str | None]]] = {}
        for one in graded:
            facts = one.example.facts
            for name in (f"length {facts['length']:>8}", facts["place"]):
                found.setdefault(name, []).append((one.grade.score, one.example.group))
        return {name: figure([s for s, _ in found[name]], [g for _, g in found[name]]) for name in sorted(found)}

    def grid(self, graded: Sequence[Graded]) -> Grid:
        facts = [(one, one.example.facts) for one in graded if one.example.facts["depth"] is not None]
        places = [(fact["length"], fact["depth"]) for _, fact in facts]
        return grid_of(places, [one.grade.score for one, _ in facts], [one.example.group for one, _ in facts])


class _Haystack:
    """Makes texts of a given number of tokens with a sentence at a given token."""

    def __init__(self, tokenizer: Tokenizer, filler: Sequence[str], before: int):
        self.tokenizer, self.filler, self.before = tokenizer, filler, before
        self.sizes = [len(ids) for ids in tokenizer.encode_batch([f"{line}\n" for line in filler])]

    def text(self, place: Place, needle: str) -> tuple[str, int]:
        """The text, and the token of the prompt at which the needle begins: as near to `place` as the tokenizer lets
        lines be filled up."""
        room = place.length - self.before - 64
        head, used = self._lines(place.position - self.before, 0)
        head = self._filled_up(head, place.position)
        position = self._position(head)
        tail, _ = self._lines(max(0, self.before + room - position - len(self.tokenizer.encode(needle))), used)
        return f"{head}{needle}\n{tail}".rstrip("\n"), position

    def _lines(self, tokens: int, first: int) -> tuple[str, int]:
        """Lines of filler of at most so many tokens, from the `first` on; and the number of the next line."""
        lines, total, i = [], 0, first
        while total + self.sizes[i % len(self.sizes)] <= tokens:
            total += self.sizes[i % len(self.sizes)]
            lines.append(f"{self.filler[i % len(self.filler)]}\n")
            i += 1
        return "".join(lines), i

    def _filled_up(self, head: str, position: int) -> str:
        """`head` with a line of marks between it and the needle, so that the needle begins at `position` if some line
        of marks has that many tokens."""
        missing = position - self._position(head)
        size = lambda text: len(self.tokenizer.encode(f"\n{text}")) - len(self.tokenizer.encode("\n"))
        each = max(1, size(" -" * 65) - size(" -" * 64))
        for words in range(max(0, missing // each), max(-1, missing // each - 8), -1):
            for end in ENDS:
                if size(line := " -" * words + end) == missing and self._position(head + line) == position:
                    return head + line
        return head

    def _position(self, head: str) -> int:
        return self.before + len(self.tokenizer.encode(f"{LEAD}{head}")) - len(self.tokenizer.encode(LEAD))


def _tokens_before(tokenizer: Tokenizer) -> int:
    """Tokens of a prompt before the haystack: the header of the user's message, and the lead."""
    rendered = render(chat_prompt(LEAD), tokenizer)
    return int(np.flatnonzero(rendered.kinds == Kind.USER)[0]) + len(tokenizer.encode(LEAD))
