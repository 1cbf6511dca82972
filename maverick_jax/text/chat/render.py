"""A conversation as token ids, built by segments, so that nothing in a text can become a control token.

Control tokens are placed by id. All text between two control tokens is tokenised at once, as a program would that
tokenises the whole; except for the empty line of a header, which is a text of its own, as in Meta's code.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.text.chat.conversation import Conversation, Image, Role
from maverick_jax.text.chat.dialects import DEFAULT, Turn, find_dialect
from maverick_jax.text.chat.spans import Control, Kind, Rendered, Segment, Span, Text
from maverick_jax.text.tokenizers.base import Tokenizer

BEGIN_OF_TEXT, HEADER_START, HEADER_END = map(Control, ("<|begin_of_text|>", "<|header_start|>", "<|header_end|>"))
IMAGE_CONTROLS = ("<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>",
                  "<|patch|>")  # fmt: skip


def render(
    conversation: Conversation, tokenizer: Tokenizer, dialect: str = DEFAULT, *, add_generation_prompt: bool = False
) -> Rendered:
    """Token ids of `conversation` and what each of them is. Equal arguments give equal ids.

    With `add_generation_prompt` the header of an assistant's message follows, for a model to go on from.
    Raises InputError where the dialect cannot write the conversation or the tokenizer lacks a control token.
    """
    writer = _Writer(tokenizer)
    writer.add(BEGIN_OF_TEXT, Role.NONE, -1)
    for turn in find_dialect(dialect).turns(conversation):
        writer.turn(turn)
    if add_generation_prompt:
        writer.header(Role.ASSISTANT, -1)
    return writer.finish()


@dataclasses.dataclass
class _Piece:
    """What is turned into ids at once: one control token or image (`ids`), or the text of one or several spans."""

    spans: list[int]
    ids: Sequence[int] | None = None


class _Writer:
    """Collects segments; `finish` tokenises all their texts in one batch."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.spans: list[Span] = []
        self.written: list[bool] = []
        self.decisions: list[int] = []
        self.pieces: list[_Piece] = []

    def turn(self, turn: Turn) -> None:
        self.header(turn.role, turn.message)
        own = turn.role is Role.ASSISTANT
        if own:
            self.decisions.append(len(self.spans))
        joins = False
        for segment in turn.content:
            self.add(segment, turn.role, turn.message, written=own, joins=joins)
            joins = isinstance(segment, Text)
        self.add(turn.stop, turn.role, turn.message, written=own)

    def header(self, role: Role, message: int) -> None:
        self.add(HEADER_START, role, message)
        self.add(Text(Kind.HEADER, role.header), role, message)
        self.add(HEADER_END, role, message)
        self.add(Text(Kind.HEADER, "\n\n"), role, message)

    def add(self, segment: Segment, role: Role, message: int, *, written: bool = False, joins: bool = False) -> None:
        """One more segment; `joins`: it is a text that is tokenised together with the text before it."""
        kind, text, ids = self._known(segment)
        call = segment.call if isinstance(segment, Text) else -1
        if not text:
            return
        if joins and ids is None:
            self.pieces[-1].spans.append(len(self.spans))
        else:
            self.pieces.append(_Piece([len(self.spans)], ids))
        self.spans.append(Span(kind, role, message, text, 0, 0, call))
        self.written.append(written)

    def _known(self, segment: Segment) -> tuple[Kind, str, Sequence[int] | None]:
        match segment:
            case Text(kind, text, _):
                return kind, text, None
            case Control(name):
                return Kind.CONTROL, name, [self._control(name)]
            case Image():
                ids = self._image_ids(segment)
                return Kind.IMAGE, self.tokenizer.decode(ids, controls=True), ids

    def _control(self, name: str) -> int:
        if name not in self.tokenizer.controls:
            raise InputError(
                f"tokenizer {self.tokenizer.name} has no control token {name}, which the chat format needs"
            )
        return self.tokenizer.controls[name]

    def _image_ids(self, image: Image) -> Sequence[int]:
        allowed = {self.tokenizer.controls.get(name) for name in IMAGE_CONTROLS}
        for i in image.ids:
            if i not in allowed:
                raise InputError(f"image: token id {i} is none of {', '.join(IMAGE_CONTROLS)}")
        return image.ids

    def finish(self) -> Rendered:
        texts = ["".join(self.spans[i].text for i in piece.spans) for piece in self.pieces if piece.ids is None]
        different = list(dict.fromkeys(texts))
        encoded = dict(zip(different, self.tokenizer.encode_batch(different), strict=True))
        remaining = iter(texts)
        ids: list[int] = []
        owners: list[int] = []
        for piece in self.pieces:
            if piece.ids is not None:
                ids += piece.ids
                owners += piece.spans * len(piece.ids)
                continue
            text = next(remaining)
            found = encoded[text]
            ids += found
            owners += piece.spans * len(found) if len(piece.spans) == 1 else self._owners(piece.spans, text, found)
        return self._rendered(np.array(ids, np.int32), np.array(owners, np.int32))

    def _owners(self, spans: list[int], text: str, ids: Sequence[int]) -> list[int]:
        """The span of each token of a text that is made of several: the first of those it holds characters of that is
        more than the syntax of a call, else the first."""
        ends = np.cumsum([len(self.spans[i].text) for i in spans])
        first = np.array(self.tokenizer.starts(text, ids), np.int64)
        last = np.maximum(first, np.append(first[1:], len(text)) - 1)
        begins = np.searchsorted(ends, first, side="right")
        stops = np.searchsorted(ends, last, side="right")
        owners = []
        for begin, stop in zip(begins.tolist(), stops.tolist(), strict=True):
            held = spans[begin : stop + 1]
            owners.append(next((i for i in held if self.spans[i].kind is not Kind.CALL_SYNTAX), held[0]))
        return owners

    def _rendered(self, ids: np.ndarray, owners: np.ndarray) -> Rendered:
        bounds = np.searchsorted(owners, np.arange(len(self.spans) + 1)).tolist()
        edges = itertools.pairwise(bounds)
        spans = tuple(dataclasses.replace(s, begin=b, end=e) for s, (b, e) in zip(self.spans, edges, strict=True))
        of_token = lambda values, dtype: np.array(values, dtype)[owners]
        rendered = Rendered(
            ids=ids,
            kinds=of_token([span.kind for span in spans], np.uint8),
            roles=of_token([span.role for span in spans], np.uint8),
            messages=of_token([span.message for span in spans], np.int32),
            written=of_token(self.written, np.bool_),
            decisions=np.array([bounds[i] for i in self.decisions], np.int32),
            spans=spans,
        )
        for field in dataclasses.fields(rendered):
            if isinstance(array := getattr(rendered, field.name), np.ndarray):
                array.flags.writeable = False
        return rendered
