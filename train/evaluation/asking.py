"""Asks an engine: prompts of examples as token ids, whole answers, and log-probabilities of continuations."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from maverick_jax.errors import InputError, QueueFull
from maverick_jax.inference.engine import Engine, Finish, Generation, GenerationRequest
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import DEFAULT, Conversation, render

OnProgress = Callable[[int], None]
AT_ONCE = 64
"""Most sequences that are scored in one call."""


class WrittenAnswer(NamedTuple):
    """An answer."""

    tokens: tuple[int, ...]
    """All of it, with the token that ends it."""
    cut: bool
    """Whether it ended at the limit of tokens."""


class Continuation(NamedTuple):
    """A text of which the last tokens are scored."""

    tokens: list[int]
    begin: int
    """Index of the first token that is scored, at least 1."""


class Likelihood(NamedTuple):
    """The score of a continuation."""

    log_prob: float
    """Sum over its tokens."""
    greedy: bool
    """Whether each of its tokens is the likeliest in its place."""


def dialect_of(tokenizer: Tokenizer) -> str:
    return tokenizer.dialect or DEFAULT


def prompt_ids(prompt: str | Conversation, tokenizer: Tokenizer) -> list[int]:
    """As `marked_prompt`, without marks."""
    return marked_prompt(prompt, tokenizer)[0]


def marked_prompt(prompt: str | Conversation, tokenizer: Tokenizer) -> tuple[list[int], np.ndarray | None]:
    """The tokens before an answer: the begin token and a text, or a conversation with the header of the next message;
    and what they are to reasoning heads, uint8[n], None: nothing. Raises InputError if the tokenizer lacks a control
    token."""
    if isinstance(prompt, str):
        return [*begin_ids(tokenizer), *tokenizer.encode(prompt)], None
    rendered = render(prompt, tokenizer, dialect_of(tokenizer), add_generation_prompt=True)
    return rendered.ids.tolist(), rendered.marks


def begin_ids(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]


def continuation(prompt: str | Conversation, text: str, tokenizer: Tokenizer) -> Continuation:
    """A prompt and a text after it. Prompt and text of a plain text are tokenized together, and split where the tokens
    of the prompt alone would end; white space at the end of the prompt counts as the continuation's. Raises InputError
    if nothing precedes the continuation, or if it is empty."""
    if isinstance(prompt, str):
        kept = prompt.rstrip()
        text = prompt[len(kept) :] + text
        before, whole = prompt_ids(kept, tokenizer), prompt_ids(kept + text, tokenizer)
    else:
        before = prompt_ids(prompt, tokenizer)
        whole = before + tokenizer.encode(text)
    if not before:
        raise InputError("nothing precedes the continuation, and the tokenizer has no begin token; expected a prompt")
    if len(whole) <= len(before):
        raise InputError(f"the continuation {text[:40]!r} has no token of its own after the prompt")
    return Continuation(whole, len(before))


def written(engine: Engine, requests: Iterable[GenerationRequest], on_progress: OnProgress) -> list[WrittenAnswer]:
    """The answer to each request, in order. If the engine's queue is full, it waits for the oldest answer first."""
    found: list[WrittenAnswer] = []
    under_way: deque[Generation] = deque()

    def wait() -> None:
        update = under_way.popleft().result()
        if update.finish is Finish.CANCELLED:
            raise RuntimeError("the engine cancelled a generation")
        found.append(WrittenAnswer(update.tokens, update.finish is Finish.LENGTH))
        on_progress(len(found))

    for request in requests:
        while True:
            try:
                (generation,) = engine.submit(request)
                break
            except QueueFull:
                if not under_way:
                    raise
                wait()
        under_way.append(generation)
    while under_way:
        wait()
    return found


def likelihoods(engine: Engine, asked: Sequence[Continuation], on_progress: OnProgress) -> list[Likelihood]:
    """The likelihood of each continuation, in order. Sequences of similar length are scored together."""
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i].tokens))
    found: dict[int, Likelihood] = {}
    for begin in range(0, len(order), AT_ONCE):
        some = order[begin : begin + AT_ONCE]
        for i, scores in zip(some, engine.score([asked[i].tokens for i in some], top=1), strict=True):
            own = scores[asked[i].begin - 1 :]
            greedy = all(score.top[0][0] == score.token for score in own)
            found[i] = Likelihood(sum(score.log_prob for score in own), greedy)
        on_progress(len(found))
    return [found[i] for i in range(len(asked))]
