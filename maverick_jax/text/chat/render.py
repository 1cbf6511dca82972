"""Render a conversation to token ids, segment by segment, so that no text can become a control token.

Control tokens are placed by id. All text between two control tokens is tokenized at once, which gives the ids of a
program that tokenizes the whole conversation; only the empty line of a header is tokenized alone, as in Meta's code.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.text.chat.conversation import Conversation, Image, Role
from maverick_jax.text.chat.dialects import DEFAULT, MessageSegments, find_dialect, thought_segments
from maverick_jax.text.chat.reply import LATENT
from maverick_jax.text.chat.spans import Control, Kind, Latents, Rendered, Segment, Span, Text
from maverick_jax.text.tokenizers.base import Tokenizer

BEGIN_OF_TEXT, HEADER_START, HEADER_END = map(Control, ("<|begin_of_text|>", "<|header_start|>", "<|header_end|>"))
IMAGE_CONTROLS = ("<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>",
                  "<|patch|>")  # fmt: skip


def render(
    conversation: Conversation,
    tokenizer: Tokenizer,
    dialect: str = DEFAULT,
    *,
    add_generation_prompt: bool = False,
    latents: int = 0,
    begin: int = 0,
) -> Rendered:
    """Token ids of `conversation`, with kind, role and message of each token. Equal arguments give equal ids.

    With `add_generation_prompt` the header of an assistant message follows, as the prompt for generation, and a thought
    of so many `latents`, which the model does not write. `begin`: the first message that is written; from 1 on, what
    continues the tokens of the messages before it.
    Raises InputError if the dialect cannot write the conversation or the tokenizer lacks a control token.
    """
    writer = _Writer(tokenizer)
    if not begin:
        writer.add(BEGIN_OF_TEXT, Role.NONE, -1)
    for message in find_dialect(dialect).messages(conversation):
        if not begin or message.message >= begin:
            writer.message(message)
    if add_generation_prompt:
        writer.header(Role.ASSISTANT, -1)
        for segment in thought_segments("", latents):
            writer.add(segment, Role.ASSISTANT, -1)
    return writer.finish()


@dataclasses.dataclass
class _Piece:
    """A unit of tokenization: one control token or image (`ids`), or the joined text of one or several spans."""

    spans: list[int]
    ids: Sequence[int] | None = None


class _Writer:
    """Collects segments; `finish` tokenizes all their texts in one batch."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.spans: list[Span] = []
        self.written: list[bool] = []
        self.decisions: list[int] = []
        self.pieces: list[_Piece] = []

    def message(self, message: MessageSegments) -> None:
        self.header(message.role, message.message)
        own = message.role is Role.ASSISTANT
        if own:
            self.decisions.append(len(self.spans))
        joins = False
        for segment in message.content:
            written = own and not isinstance(segment, Latents)
            self.add(segment, message.role, message.message, written=written, joins=joins)
            joins = isinstance(segment, Text)
        self.add(message.stop, message.role, message.message, written=own)

    def header(self, role: Role, message: int) -> None:
        self.add(HEADER_START, role, message)
        self.add(Text(Kind.HEADER, role.header), role, message)
        self.add(HEADER_END, role, message)
        self.add(Text(Kind.HEADER, "\n\n"), role, message)

    def add(self, segment: Segment, role: Role, message: int, *, written: bool = False, joins: bool = False) -> None:
        """Append a segment. With `joins` its text is tokenized together with the text before it."""
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
            case Latents(count):
                return Kind.LATENT, LATENT * count, [self._control(LATENT)] * count
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
                raise InputError(f"image: token id {i} is not one of {', '.join(IMAGE_CONTROLS)}")
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
        """Span of each token of a text that joins several spans: of the spans whose characters the token holds, the
        first that is not call syntax, or else the first."""
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
