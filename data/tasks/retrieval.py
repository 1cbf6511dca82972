"""Retrieval by length and depth: one of the records among ordinary lines is asked for at the end (`data.retrieval`)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from data.graders.base import Grade, binary
from data.graders.figures import Figure
from data.graders.grids import Grid, grid_of
from data.graders.matching import differs
from data.order import derive
from data.retrieval import KeyedLine, draw_records, draw_sentences
from data.tasks.base import Example, Graded, Task, TaskInfo
from data.tasks.prompts import chat_prompt
from maverick_jax.errors import InputError
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Reply

ASK = "The text has lines of the form `key=value`. What is the value of the key `{key}`? Answer with the value alone."
Share = Annotated[float, Field(ge=0, le=1)]
Length = Annotated[int, Field(ge=64, le=1 << 24)]


class Retrieval(Task):
    """`kind: retrieval`: records by length and depth, in texts that also a small base model can learn
    (`data.sources`, `kind: retrieval`)."""

    kind: Literal["retrieval"] = "retrieval"
    """Records by length and depth."""
    lengths: Annotated[tuple[Length, ...], Field(min_length=1)] = (1024, 4096)
    """Most tokens of the prompt and its answer, of the model's tokenizer; at most one sentence less."""
    depths: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Share of the other lines before the record: 0 puts it first, 1 last. Each text is asked at all depths."""
    sentences: Share = 0.0
    """Share of the other lines that are ordinary sentences. 1: a needle, the only record; 0: records alone, as
    long as there are any: there are 36, and sentences fill up what is left."""
    count: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Number of examples at each length and depth."""
    chat: bool = False
    """Whether the text is a user's message, with a question in words. false: a base model continues the text."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the examples."""
    max_tokens: Annotated[int, Field(ge=1)] = 4
    """Maximum number of tokens in an answer."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo("generated from a seed", "Apache-2.0")

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return () if self.chat else ("\n",)

    def examples(self) -> list[Example]:
        raise InputError("kind: retrieval: its examples depend on a tokenizer; expected `examples_for`")

    def examples_for(self, tokenizer: Tokenizer) -> list[Example]:
        """Examples whose lengths are counted in tokens of `tokenizer`. Raises InputError if a record does not fit."""
        return [one for length in self.lengths for number in range(self.count)
                for one in self._at_all_depths(length, number, tokenizer)]  # fmt: skip

    def _at_all_depths(self, length: int, number: int, tokenizer: Tokenizer) -> list[Example]:
        random = np.random.RandomState(derive(self.seed, "retrieval", length, number) % 2**32)
        asked, *others = draw_records(random)
        lines = self._lines(random, others, length // 3)  # a line has more than two tokens
        sizes = [len(ids) for ids in tokenizer.encode_batch(lines)]
        bare = tokenizer.encode(self._prompt_text(asked, [asked.line]) + asked.value)
        left = length - len(bare) - 1  # one begin token
        if left < 0:
            least = length - left
            raise InputError(f"lengths: {length}: the record and its question alone take {least} tokens of this "
                             f"tokenizer; expected at least {least}")  # fmt: skip
        fitting = int(np.searchsorted(np.cumsum(sizes), left, side="right"))
        mixed = [lines[i] for i in random.permutation(fitting)]
        group, found = f"{length} {number}", []
        for depth in self.depths:
            place = round(depth * fitting)
            text = self._prompt_text(asked, [*mixed[:place], asked.line, *mixed[place:]])
            facts = {"length": length, "depth": depth}
            prompt = chat_prompt(text) if self.chat else text
            found.append(Example(f"{group} at {depth:.2f}", prompt, (asked.value,), group=group, facts=facts))
        return found

    def _lines(self, random: np.random.RandomState, records: Sequence[KeyedLine], most: int) -> list[str]:
        """Lines of other records and sentences; sentences where records have run out."""
        is_sentence, sentences = random.random_sample(most) < self.sentences, draw_sentences(random, most)
        left = iter(records)
        return [sentence if this or (record := next(left, None)) is None else record.line
                for this, sentence in zip(is_sentence, sentences, strict=True)]  # fmt: skip

    def _prompt_text(self, asked: KeyedLine, lines: Sequence[str]) -> str:
        text = "".join(lines)
        return f"{ASK.format(key=asked.key)}\n\n{text}" if self.chat else f"{text}{asked.question}"

    def grade(self, example: Example, reply: Reply) -> Grade:
        (value,) = example.references
        right = value in reply.text if self.chat else reply.text.startswith(value)
        return binary(right, differs(reply.text, [value]), bool(reply.text.strip()))

    def figures(self, graded: Sequence[Graded]) -> dict[str, Figure]:
        """The score of each length and of each depth, over all of the other."""
        return self.grid(graded).margins()

    def grid(self, graded: Sequence[Graded]) -> Grid:
        facts = [(one.example.facts["length"], one.example.facts["depth"]) for one in graded]
        return grid_of(facts, [one.grade.score for one in graded], [one.example.group for one in graded])
