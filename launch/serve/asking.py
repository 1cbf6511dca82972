"""From a prompt and the fields of a request to the pieces of its answers. All generating routes share it."""

import contextlib
import dataclasses
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from launch.serve.errors import NO_RETRY, ApiError
from launch.serve.fields import SamplingFields
from launch.serve.parsing import ReplyPiece, ReplyReader, TextReader, WholeReply
from launch.serve.prompts import Prompt
from launch.serve.running import Spent, submit, updates
from launch.serve.served import Served
from maverick_jax.inference.engine.requests import Finish, Generation, GenerationRequest, TokenFilter, TokenScore
from maverick_jax.inference.prompts import stop_ids
from maverick_jax.text.chat import Dialect
from maverick_jax.text.chat.reply import THINKING

NEVER = -100.0
"""Bias of a token that must not be drawn."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """What is asked of the engine for one prompt."""

    prompt: Prompt
    limit: int
    """Most tokens of an answer."""
    fields: SamplingFields
    dialect: Dialect | None = None
    """The dialect of calls that are expected; None: none are."""
    grammar: str | None = None
    log_probs: int | None = None
    session: str | None = None
    may_think: bool = True
    is_reply: bool = True
    """Whether the answer is an assistant's message; otherwise all of it is text."""


@dataclasses.dataclass(frozen=True)
class AnswerPiece:
    """What is new in one of the answers."""

    index: int
    piece: ReplyPiece
    tokens: tuple[int, ...] = ()
    """The new tokens, hidden ones included."""
    scores: tuple[TokenScore, ...] = ()
    """Those of `piece.tokens`."""
    cached: int = 0
    """In an answer's first piece: tokens of the prompt that were not computed again."""
    whole: WholeReply | None = None
    """In an answer's last piece."""
    finish_reason: str | None = None


class Answers:
    """The answers to one prompt while they are written: `async with Answers(served, ask) as pieces`, or an object to
    close later. The generations are queued at once; ApiError and InputError are raised then. At the end whatever still
    runs is cancelled."""

    def __init__(self, served: Served, ask: Ask):
        self._generations = submit(served, _request(served, ask), ask.fields.choices, _filters(served, ask))
        self.pieces = _pieces(served, ask, self._generations)

    async def __aenter__(self) -> AsyncIterator[AnswerPiece]:
        return self.pieces

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        for generation in self._generations:  # the iteration may never have begun
            generation.cancel()
        await self.pieces.aclose()


async def _pieces(served: Served, ask: Ask, generations: Sequence[Generation]) -> AsyncGenerator[AnswerPiece]:
    readers = [_reader(served, ask) for _ in generations]
    scores: list[list[TokenScore]] = [[] for _ in generations]
    async with contextlib.aclosing(updates(served, generations)) as arriving:
        async for index, update in arriving:
            scores[index].extend(update.scores)
            piece = readers[index].add(update.tokens)
            of = lambda piece, index=index: tuple(scores[index][place] for place in piece.tokens if scores[index])
            yield AnswerPiece(index, piece, update.tokens, of(piece), update.cached_tokens)
            if update.finish is Finish.CANCELLED:
                raise ApiError(503, "the server is stopping", code="stopping", headers=NO_RETRY)
            if update.finish is not None:
                rest, whole = readers[index].finish(update.finish)
                if served.gate is not None and whole.calls and ask.prompt.conversation is not None:
                    rest, whole = await served.in_thread(served.gate.judged, ask.prompt.conversation, rest, whole)
                if whole.error is not None and ask.dialect is not None:
                    served.metrics.count_malformed()
                yield AnswerPiece(index, rest, (), of(rest), 0, whole, finish_reason(whole, update.finish))


def _filters(served: Served, ask: Ask) -> list[TokenFilter]:
    """One for each answer: of the form that is required, or else of the tools that may be called; none if any token
    may follow."""
    conversation = ask.prompt.conversation
    if ask.grammar:
        return [served.grammars.filter(ask.grammar) for _ in range(ask.fields.choices)]
    if served.gate is None or ask.dialect is None or conversation is None:
        return []
    return [served.gate.filter(conversation) for _ in range(ask.fields.choices)]


def _reader(served: Served, ask: Ask) -> ReplyReader | TextReader:
    texts = ask.fields.stop_texts
    if not ask.is_reply:
        return TextReader(served.tokenizer, texts)
    return ReplyReader(served.tokenizer, ask.dialect, ask.fields.stop_token_ids or (), texts)


def finish_reason(whole: WholeReply, finish: Finish) -> str:
    if whole.calls:
        return "tool_calls"
    return "length" if finish is Finish.LENGTH and not whole.stop_text else "stop"


def count(spent: Spent, piece: AnswerPiece) -> None:
    """Adds a piece to what a request has spent."""
    spent.completion += len(piece.tokens)
    spent.cached = max(spent.cached, piece.cached)
    if piece.whole is not None:
        spent.reasoning += piece.whole.thought_tokens


def _request(served: Served, ask: Ask) -> GenerationRequest:
    fields, tokenizer = ask.fields, served.tokenizer
    sampling = fields.sampling(served.engine.vocab_size)
    think = tokenizer.controls.get(THINKING[0])
    if not ask.may_think and think is not None:
        sampling = dataclasses.replace(sampling, logit_bias={**sampling.logit_bias, think: NEVER})
    return GenerationRequest(
        prompt=ask.prompt.ids,
        max_tokens=ask.limit,
        sampling=sampling,
        seed=secrets.randbits(31) if fields.seed is None else fields.seed % 2**31,
        stop_ids=stop_ids(tokenizer) | frozenset(fields.stop_token_ids or ()),
        stop_texts=fields.stop_texts,
        tiles=ask.prompt.tiles,
        marks=ask.prompt.marks,
        log_probs=ask.log_probs,
        session=ask.session,
        realm=fields.cache_salt or "",
    )
