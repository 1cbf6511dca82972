"""`/v1/completions`: prompts of text or of token ids are continued as they are, or scored (`echo` with `logprobs`)."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from launch.serve.asking import AnswerPiece, Answers, Ask, count
from launch.serve.bodies import read_object
from launch.serve.chat import new_id
from launch.serve.completion_request import CompletionRequest
from launch.serve.errors import refused
from launch.serve.logprobs import completion_logprobs
from launch.serve.parsing import ReplyPiece, WholeReply
from launch.serve.prompts import Prompt
from launch.serve.running import Spent, unless_gone
from launch.serve.served import Served
from launch.serve.streaming import DONE, EventStream, event
from maverick_jax.errors import InputError
from maverick_jax.inference.engine.requests import TokenScore


@dataclasses.dataclass(frozen=True)
class GivenPrompt:
    """One prompt of a request."""

    ids: list[int]
    """What the model reads."""
    added: bool
    """Whether the server put the first token before what was given."""

    @property
    def given(self) -> list[int]:
        return self.ids[1:] if self.added else self.ids


async def completions(served: Served, request: Request) -> Response:
    body = CompletionRequest.read(await read_object(request, served.limits))
    body.check()
    served.require_model(body.model)
    prompts = await served.in_thread(_prompts, served, body)
    answer = CompletionAnswer(served, body, prompts)
    if body.stream:
        if len(prompts) > 1:
            raise refused("prompt", "one prompt is expected with `stream`")
        answers = answer.start(prompts[0])
        return EventStream(served, answer.events(answers), answers.close)
    return JSONResponse(await unless_gone(request, answer.whole()))


def _prompts(served: Served, body: CompletionRequest) -> list[GivenPrompt]:
    bos, found = served.tokenizer.bos_id, []
    for prompt in body.prompts():
        is_text = isinstance(prompt, str)
        try:
            ids = served.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        except InputError as error:
            raise refused("prompt", str(error)) from None
        if wrong := next((i for i in ids if not 0 <= i < served.engine.vocab_size), None):
            raise refused("prompt", f"{wrong} is not a token id; expected 0 to {served.engine.vocab_size - 1}")
        added = bos is not None and (is_text or served.options.begin_prompts) and ids[:1] != [bos]
        ids = [bos, *ids] if added and bos is not None else ids
        if not ids:
            raise refused("prompt", "no tokens; expected at least one")
        served.require_room(len(ids), body.limit, "prompt")
        found.append(GivenPrompt(ids, added))
    return found


Written = tuple[AnswerPiece, Sequence[TokenScore], Sequence[int]]
"""The last piece of an answer, and the scores and ids of its tokens."""
NOTHING: Written = (AnswerPiece(0, ReplyPiece(), whole=WholeReply(), finish_reason="length"), (), ())


class CompletionAnswer:
    """The answers to all prompts of one request."""

    def __init__(self, served: Served, body: CompletionRequest, prompts: Sequence[GivenPrompt]):
        self.served, self.body, self.prompts = served, body, prompts
        self.id, self.created, self.spent = new_id("cmpl-"), int(time.time()), Spent()

    def start(self, prompt: GivenPrompt) -> Answers:
        ask = Ask(Prompt(prompt.ids), self.body.limit, self.body, log_probs=self.body.logprobs, is_reply=False)
        return Answers(self.served, ask)

    async def whole(self) -> dict[str, Any]:
        scores = await self._prompt_scores()
        choices = await self._written() if self.body.limit else [[NOTHING] * self.body.choices for _ in self.prompts]
        found = [
            self._choice(i * self.body.choices + j, prompt, score, *one)
            for i, (prompt, score, of_prompt) in enumerate(zip(self.prompts, scores, choices, strict=True))
            for j, one in enumerate(of_prompt)
        ]
        return {**self._head(), "choices": found, "usage": self._usage()}

    async def _prompt_scores(self) -> list[list[TokenScore]]:
        if not self.body.echo or self.body.logprobs is None:
            return [[] for _ in self.prompts]
        sequences = [prompt.ids for prompt in self.prompts]
        return await self.served.score(sequences, self.body.logprobs)

    async def _written(self) -> list[list[Written]]:
        at_once = asyncio.Semaphore(self.served.engine.status().slots)  # many prompts do not fill the queue

        async def one(prompt: GivenPrompt) -> list[Written]:
            async with at_once, self.start(prompt) as pieces:
                return await self._collect(pieces)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(prompt)) for prompt in self.prompts]
        return [task.result() for task in tasks]

    async def _collect(self, pieces: AsyncIterator[AnswerPiece]) -> list[Written]:
        n = self.body.choices
        last: list[Any] = [None] * n
        scores: list[list[TokenScore]] = [[] for _ in range(n)]
        tokens: list[list[int]] = [[] for _ in range(n)]
        async for piece in pieces:
            count(self.spent, piece)
            scores[piece.index] += piece.scores
            tokens[piece.index] += piece.tokens
            if piece.whole is not None:
                last[piece.index] = piece
        return list(zip(last, scores, tokens, strict=True))

    def _choice(
        self,
        index: int,
        prompt: GivenPrompt,
        prompt_scores: Sequence[TokenScore],
        piece: AnswerPiece,
        scores: Sequence[TokenScore],
        tokens: Sequence[int],
    ) -> dict[str, Any]:
        assert piece.whole is not None
        shown = prompt.given if self.body.echo else []
        before = self.served.tokenizer.decode(shown, controls=True)
        all_scores: list[TokenScore | int] = [*scores]
        if self.body.echo:
            all_scores = [*([] if prompt.added else prompt.ids[:1]), *prompt_scores, *scores]
        more = {"token_ids": list(tokens)} if self.body.return_token_ids else {}
        return {
            "index": index,
            "text": before + _text(piece),
            "finish_reason": piece.finish_reason,
            "logprobs": self._logprobs(all_scores),
            "prompt_begins": "added" if prompt.added else "as given",
            **more,
        }

    async def events(self, answers: Answers) -> AsyncGenerator[bytes]:
        async for piece in answers.pieces:
            count(self.spent, piece)
            if piece.piece.text or piece.scores or piece.whole is not None or piece.tokens:
                yield self._chunk(piece)
        if self.body.with_usage:
            yield event({**self._head(), "choices": [], "usage": self._usage()})
        yield DONE

    def _chunk(self, piece: AnswerPiece) -> bytes:
        choice = {"index": piece.index, "text": piece.piece.text, "finish_reason": piece.finish_reason}
        choice["logprobs"] = self._logprobs(piece.scores)
        if self.body.return_token_ids:
            choice["token_ids"] = list(piece.tokens)
        usage = {"usage": None} if self.body.with_usage else {}
        return event({**self._head(), "choices": [choice], **usage})

    def _logprobs(self, scores: Sequence[TokenScore | int]) -> dict[str, Any] | None:
        if self.body.logprobs is None:
            return None
        as_ids = bool(self.body.return_tokens_as_token_ids)
        return completion_logprobs(scores, self.body.logprobs, self.served.tokenizer, as_ids=as_ids)

    def _head(self) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.body.model}
        return {**head, "system_fingerprint": self.served.fingerprint}

    def _usage(self) -> dict[str, Any]:
        prompt = sum(len(prompt.ids) for prompt in self.prompts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.spent.completion,
            "total_tokens": prompt + self.spent.completion,
            "prompt_tokens_details": {"cached_tokens": self.spent.cached},
        }


def _text(piece: AnswerPiece) -> str:
    assert piece.whole is not None
    return piece.whole.text
