"""Pointer chasing: symbols that lie on one cycle, its arrows in random order, and the question where some steps lead.

Each step of the answer is a lookup whose key is the result of the one before. A network of few layers cannot do them
all in one pass, so the task shows whether thoughts carry a computation (docs/results/latent_thoughts.md).
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
import pydantic
from pydantic import Field

from data.latents import LatentSteps
from data.order import derive
from data.sources.base import MadeBlock, MadeSource, Positive
from data.trajectories.kinds import TokenKind
from maverick_jax.errors import InputError
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat.reply import LATENT, THINKING

BLOCK = 4096
"""Documents that are drawn together."""
SYMBOLS = "abcdefghijklmnopqrstuvwxyz"
MARK = ";"
"""Stands after each arrow. Without it only the parity of a place would say which symbol an arrow begins with, and a
model follows arrows that are not there, from the end of one to the beginning of the next."""
LAYOUT = 2
"""Changes whenever equal settings would give other documents."""


class ChainSource(MadeSource):
    """`kind: chain`: pointer chasing, drawn from a seed."""

    kind: Literal["chain"] = "chain"
    """Questions where some steps along the arrows of a cycle lead."""
    format: Annotated[Literal["chain"], Field(exclude=True)] = "chain"
    """The same as `kind: chain`."""
    documents: Positive = 1000
    """Number of questions."""
    symbols: Annotated[int, Field(ge=3, le=len(SYMBOLS))] = 8
    """Symbols on the cycle, N."""
    hops: Positive = 3
    """Steps from the start to the answer, fewer than `symbols`."""
    thoughts: bool = True
    """Whether a thought with the symbols on the way stands before the answer. false: the answer follows the question,
    and nothing is replaced."""
    latents: LatentSteps = LatentSteps()
    """Which steps of the thought latents take the place of."""
    corpus_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the questions; their order follows from the run's seed."""

    @pydantic.model_validator(mode="after")
    def _ends_elsewhere(self):
        if self.hops >= self.symbols:
            raise ValueError(f"hops ({self.hops}) must be less than symbols ({self.symbols}), the length of the cycle")
        return self

    def identity(self) -> list:
        settings = {"documents", "symbols", "hops", "thoughts", "latents", "corpus_seed"}
        return ["chain", LAYOUT, self.model_dump(mode="json", include=settings)]

    def blocks(self, name: str, tokenizer: Tokenizer) -> Iterator[MadeBlock]:
        writer = ChainWriter.of(tokenizer, f"data.sources.{name}")
        for first in range(0, self.documents, BLOCK):
            numbers = np.arange(first, min(first + BLOCK, self.documents))
            question, path = self.drawn(numbers)
            replaced = self.latents.of_documents(numbers, self.hops, derive(self.corpus_seed, "latents"))
            if not self.thoughts:
                yield writer.without_thoughts(question, path)
            elif (replaced == replaced[0]).all():
                yield writer.block(question, path, int(replaced[0]), self.latents.per_step)
            else:
                parts = [writer.block(question[i : i + 1], path[i : i + 1], int(k), self.latents.per_step)
                         for i, k in enumerate(replaced)]  # fmt: skip
                yield MadeBlock(*map(np.concatenate, zip(*parts, strict=True)))

    def drawn(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Questions `numbers` of one block: the numbers of its symbols int32[n, 2N + 1], the pairs of all arrows and
        the start, and of those on the way int32[n, hops], the last of which is the answer."""
        block, among = int(numbers[0]) // BLOCK, numbers % BLOCK
        # NumPy guarantees only for the legacy generator that its streams stay the same in all versions.
        random = np.random.RandomState(derive(self.corpus_seed, "chain", block) % 2**32)
        cycle = np.argsort(random.random_sample((BLOCK, self.symbols)), axis=1)[among].astype(np.int32)
        order = np.argsort(random.random_sample((BLOCK, self.symbols)), axis=1)[among]
        arrows = np.stack([cycle, np.roll(cycle, -1, axis=1)], axis=2)
        arrows = np.take_along_axis(arrows, order[..., None], axis=1).reshape(len(numbers), -1)
        return np.concatenate([arrows, cycle[:, :1]], axis=1), cycle[:, 1 : self.hops + 1]


class ChainWriter:
    """Writes questions with a tokenizer."""

    def __init__(self, symbols: np.ndarray, mark: int, start: int, end: int, latent: int):
        self.symbols, self.mark, self.start, self.end, self.latent = symbols, mark, start, end, latent

    @classmethod
    def of(cls, tokenizer: Tokenizer, where: str) -> "ChainWriter":
        ids = tokenizer.encode_batch([*SYMBOLS, MARK])
        if any(len(found) != 1 for found in ids):
            said = f"letters or a {MARK} of several tokens; expected one each"
            raise InputError(f"{where}: tokenizer {tokenizer.name} has {said}")
        for control in (*THINKING, LATENT):
            if control not in tokenizer.controls:
                raise InputError(
                    f"{where}: tokenizer {tokenizer.name} has no control token {control}, which thoughts need; "
                    "expected data.tokenizer: bytes_thinking, or one of Llama 4"
                )
        controls = (tokenizer.controls[name] for name in (*THINKING, LATENT))
        *symbols, mark = np.array(ids, np.int32)[:, 0]
        return cls(np.array(symbols), int(mark), *controls)

    def question(self, question: np.ndarray) -> np.ndarray:
        """Ids int32[n, 3N + 1] of questions [n, 2N + 1]: each arrow with the mark after it, and the start."""
        ids = self.symbols[question]
        arrows = np.pad(ids[:, :-1].reshape(len(ids), -1, 2), ((0, 0), (0, 0), (0, 1)), constant_values=self.mark)
        return np.concatenate([arrows.reshape(len(ids), -1), ids[:, -1:]], axis=1)

    def block(self, question: np.ndarray, path: np.ndarray, replaced: int, per_step: int) -> MadeBlock:
        """Documents whose first `replaced` steps are latents, `per_step` each. A program ends a thought of latents
        alone, so its end is not learned."""
        left = path.shape[1] - replaced
        parts = [
            (self.question(question), TokenKind.USER),
            (self.start, TokenKind.CONTROL),
            *[(self.latent, TokenKind.LATENT)] * (replaced * per_step),
            (self.symbols[path[:, replaced:]], TokenKind.THOUGHT),
            (self.end, TokenKind.CONTROL if left else TokenKind.LATENT),
            (self.symbols[path[:, -1:]], TokenKind.FINAL_ANSWER),
        ]
        return _joined(parts, len(question))

    def without_thoughts(self, question: np.ndarray, path: np.ndarray) -> MadeBlock:
        parts = [(self.question(question), TokenKind.USER), (self.symbols[path[:, -1:]], TokenKind.FINAL_ANSWER)]
        return _joined(parts, len(question))


def _joined(parts: Sequence[tuple[np.ndarray | int, TokenKind]], n: int) -> MadeBlock:
    """`n` documents of equal length, of ids [n, w] or one id, and their kinds."""
    wide = [np.full((n, 1), ids, np.int32) if isinstance(ids, int) else ids for ids, _ in parts]
    ids = np.concatenate(wide, axis=1)
    kinds = np.concatenate(
        [np.full(part.shape, kind, np.uint8) for part, (_, kind) in zip(wide, parts, strict=True)], 1
    )
    return MadeBlock(ids.reshape(-1), kinds.reshape(-1), np.full(n, ids.shape[1], np.int64))
