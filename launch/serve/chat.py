"""`/v1/chat/completions`."""

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from launch.serve.asking import AnswerPiece, Answers, Ask, count
from launch.serve.bodies import read_object
from launch.serve.chat_request import ChatRequest
from launch.serve.errors import refused
from launch.serve.fields import require_known_effort
from launch.serve.logprobs import chat_logprobs
from launch.serve.parsing import WholeReply
from launch.serve.prompts import Prompt
from launch.serve.running import Spent, unless_gone
from launch.serve.served import Served
from launch.serve.streaming import DONE, EventStream, event
from maverick_jax.text.chat import Tool, ToolCall


async def chat_completions(served: Served, request: Request) -> Response:
    body = ChatRequest.read(await read_object(request, served.limits))
    body.check()
    served.require_model(body.model)
    ask = await served.in_thread(_ask, served, body)
    answer = ChatAnswer(served, body, ask)
    answers = Answers(served, ask)
    if body.stream:
        return EventStream(served, answer.events(answers.pieces), answers.close)
    async with answers as pieces:
        return JSONResponse(await unless_gone(request, answer.whole(pieces)))


def _ask(served: Served, body: ChatRequest) -> Ask:
    messages, tiles = served.prompts.messages(body.messages)
    tools = served.prompts.tools(body.offered)
    if served.gate is not None and body.return_token_ids:
        raise refused("return_token_ids", "not with a policy, because ids would show calls that it holds back")
    prompt = served.prompts.prompt(messages, tools, tiles)
    return Ask(
        prompt=prompt,
        limit=served.require_room(len(prompt.ids), body.limit, "messages"),
        fields=body,
        dialect=served.dialect if tools else None,
        grammar=_grammar(served, body, tools),
        log_probs=(body.top_logprobs or 0) if body.logprobs else None,
        may_think=require_known_effort(body.reasoning_effort, "reasoning_effort"),
    )


def _grammar(served: Served, body: ChatRequest, tools: Sequence[Tool]) -> str | None:
    schema = body.response_format and body.response_format.schema_of_answer()
    if schema is not None:
        return served.grammars.of_schema(schema, "response_format")
    return call_grammar(served, tools, body.must_call, body.only_tool, body.parallel_tool_calls is not False)


def call_grammar(served: Served, tools: Sequence[Tool], must_call: bool, only: str | None, several: bool) -> str | None:
    """The grammar of an answer that must be calls; None if it need not. Raises ApiError for an unknown tool."""
    if not must_call:
        return None
    chosen = [tool for tool in tools if only in (None, tool.name)]
    if not chosen:
        raise refused("tool_choice", f"{only!r:.80} is not one of the tools")
    return served.grammars.of_calls(chosen, served.dialect, several and only is None)


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(16)}"


class ChatAnswer:
    """The answers to one request, whole or in chunks."""

    def __init__(self, served: Served, body: ChatRequest, ask: Ask):
        self.served, self.body, self.ask = served, body, ask
        self.id, self.created = new_id("chatcmpl-"), int(time.time())
        self.spent = Spent()

    async def whole(self, pieces: AsyncIterator[AnswerPiece]) -> dict[str, Any]:
        choices: list[dict[str, Any]] = [{} for _ in range(self.body.choices)]
        scores: list[list] = [[] for _ in choices]
        tokens: list[list[int]] = [[] for _ in choices]
        async for piece in pieces:
            count(self.spent, piece)
            scores[piece.index] += piece.scores
            tokens[piece.index] += piece.tokens
            if piece.whole is not None:
                choices[piece.index] = self._choice(piece, scores[piece.index], tokens[piece.index])
        head = self._head("chat.completion")
        return {**head, "choices": choices, "usage": chat_usage(self.ask.prompt, self.spent)}

    def _choice(self, piece: AnswerPiece, scores: list, tokens: list[int]) -> dict[str, Any]:
        whole = piece.whole
        assert whole is not None
        message: dict[str, Any] = {"role": "assistant", "content": content_of(whole), "refusal": None}
        if whole.calls:
            message["tool_calls"] = [_call(call) for call in whole.calls]
        if self.body.include_reasoning and whole.thought:
            message |= _reasoning(whole.thought)
        return {
            "index": piece.index,
            "message": message,
            "finish_reason": piece.finish_reason,
            "logprobs": self._logprobs(scores),
            **_problem(whole),
            **({"token_ids": tokens} if self.body.return_token_ids else {}),
        }

    async def events(self, pieces: AsyncIterator[AnswerPiece]) -> AsyncGenerator[bytes]:
        for index in range(self.body.choices):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for piece in pieces:
            count(self.spent, piece)
            for chunk in self._chunks(piece):
                yield chunk
        if self.body.with_usage:
            usage = chat_usage(self.ask.prompt, self.spent)
            yield event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage})
        yield DONE

    def _chunks(self, piece: AnswerPiece) -> list[bytes]:
        delta: dict[str, Any] = {"content": piece.piece.text} if piece.piece.text else {}
        if self.body.include_reasoning and piece.piece.thought:
            delta |= _reasoning(piece.piece.thought)
        ids = {"token_ids": list(piece.tokens)} if self.body.return_token_ids and piece.tokens else {}
        found = []
        if delta or ids or (self.body.logprobs and piece.scores):
            found.append(self._chunk(piece.index, delta, None, self._logprobs(piece.scores), **ids))
        if piece.whole is not None:
            for i, call in enumerate(piece.whole.calls):
                found.append(self._chunk(piece.index, {"tool_calls": [{"index": i, **_call(call)}]}))
            found.append(self._chunk(piece.index, {}, piece.finish_reason, **_problem(piece.whole)))
        return found

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None, **more: Any
    ) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs, **more}
        usage = {"usage": None} if self.body.with_usage else {}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}
        return {**head, "system_fingerprint": self.served.fingerprint}

    def _logprobs(self, scores: Sequence) -> dict[str, Any] | None:
        if not self.body.logprobs:
            return None
        found = chat_logprobs(scores, self.body.top_logprobs or 0, self.served.tokenizer)
        return {"content": found, "refusal": None}


def content_of(whole: WholeReply) -> str | None:
    """The content of a message: null only beside calls."""
    return None if whole.calls and not whole.text else whole.text


def _reasoning(thought: str) -> dict[str, str]:
    """Under both names that clients look for."""
    return {"reasoning": thought, "reasoning_content": thought}


def _problem(whole: WholeReply) -> dict[str, Any]:
    """What a client cannot see in the content itself: that it holds control tokens, or calls that are none, or stands
    in the place of calls."""
    held = {} if whole.held is None else {"held_back": whole.held}
    return held if whole.error is None else {"malformed": whole.error}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": arguments_text(call)}
    return {"id": new_id("call_"), "type": "function", "function": function}


def arguments_text(call: ToolCall) -> str:
    return json.dumps(dict(call.arguments), ensure_ascii=False, allow_nan=False)


def chat_usage(prompt: Prompt, spent: Spent) -> dict[str, Any]:
    of_prompt = {"image_tokens": prompt.image_tokens, "latent_tokens": prompt.latent_tokens}
    return {
        "prompt_tokens": len(prompt.ids),
        "completion_tokens": spent.completion,
        "total_tokens": len(prompt.ids) + spent.completion,
        "prompt_tokens_details": {"cached_tokens": spent.cached, **of_prompt},
        "completion_tokens_details": {"reasoning_tokens": spent.reasoning},
    }
