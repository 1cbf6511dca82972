"""`/v1/responses`: conversations that the server keeps, with the tokens exactly as the model wrote them."""

import dataclasses
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from launch.serve.asking import Answers, Ask
from launch.serve.bodies import read_object
from launch.serve.chat import call_grammar
from launch.serve.errors import ApiError
from launch.serve.fields import require_known_effort
from launch.serve.parsing import WholeReply
from launch.serve.prompts import WrittenTurn
from launch.serve.response_answer import ResponseAnswer
from launch.serve.response_request import ResponseRequest
from launch.serve.response_store import KeptResponse
from launch.serve.running import unless_gone
from launch.serve.served import Served
from launch.serve.streaming import EventStream
from maverick_jax.text.chat import Message, Role
from maverick_jax.text.chat.reply import STOPS


@dataclasses.dataclass(frozen=True)
class ResponseTurn:
    """A request's part of a conversation, after what came before it."""

    messages: tuple[Message, ...]
    """The conversation without instructions."""
    written: dict[int, WrittenTurn]
    tiles: np.ndarray | None
    session: str | None


async def create_response(served: Served, request: Request) -> Response:
    body = ResponseRequest.read(await read_object(request, served.limits))
    body.check()
    served.require_model(body.model)
    answer = ResponseAnswer(served, body)
    turn, ask = await served.in_thread(_ask, served, body, answer.id)
    answer.prompt = ask.prompt
    if body.is_kept:
        answer.keep = lambda shown, whole, ids: _keep(served, turn, shown, whole, ids)
    answers = Answers(served, ask)
    if body.stream:
        return EventStream(served, answer.events(answers.pieces), answers.close)
    async with answers as pieces:
        return JSONResponse(await unless_gone(request, answer.whole(pieces)))


async def get_response(served: Served, request: Request) -> Response:
    return JSONResponse(dict(_kept(served, request.path_params["id"]).shown))


async def delete_response(served: Served, request: Request) -> Response:
    name = request.path_params["id"]
    if not served.responses.drop(name):
        raise _unknown(name)
    return JSONResponse({"id": name, "object": "response.deleted", "deleted": True})


def _kept(served: Served, name: str) -> KeptResponse:
    found = served.responses.get(name)
    if found is None:
        raise _unknown(name)
    return found


def _unknown(name: str) -> ApiError:
    return ApiError(404, f"response {name[:80]!r} is not kept here", param="id", code="response_not_found")


def _ask(served: Served, body: ResponseRequest, name: str) -> tuple[ResponseTurn, Ask]:
    before = _kept(served, body.previous_response_id) if body.previous_response_id else None
    messages, tiles = served.prompts.messages(body.messages())
    if before is not None:
        messages = [*before.messages, *messages]
        tiles = _joined(before.tiles, tiles)
    written = dict(before.written) if before else {}
    session = (before.session if before else name) if body.is_kept else None
    turn = ResponseTurn(tuple(messages), written, tiles, session)
    tools = served.prompts.tools(body.offered())
    if body.instructions:
        messages = [Message(Role.SYSTEM, body.instructions), *messages]
        written = {index + 1: ids for index, ids in written.items()}
    prompt = served.prompts.prompt(messages, tools, tiles, written)
    several = body.parallel_tool_calls is not False
    schema = body.schema_of_answer
    grammar = call_grammar(served, tools, body.must_call, body.only_tool, several)
    ask = Ask(
        prompt=prompt,
        limit=served.require_room(len(prompt.ids), body.max_output_tokens, "input"),
        fields=body,
        dialect=served.dialect if tools else None,
        grammar=grammar if schema is None else served.grammars.of_schema(schema, "text.format"),
        session=session,
        may_think=require_known_effort(body.reasoning.effort if body.reasoning else None, "reasoning.effort"),
    )
    return turn, ask


def _joined(before: np.ndarray | None, new: np.ndarray | None) -> np.ndarray | None:
    if before is None or new is None:
        return new if before is None else before
    return np.concatenate([before, new])


def _keep(served: Served, turn: ResponseTurn, shown: dict[str, Any], whole: WholeReply, ids: list[int]) -> None:
    """Stores the conversation with the answer. The model's tokens are kept, hidden ones too, unless a stop text cut the
    answer, or the gate held calls back: then what was shown goes on."""
    index, written = len(turn.messages), dict(turn.written)
    if ids and not whole.stop_text and whole.held is None:
        ends = {served.tokenizer.controls.get(name) for name in STOPS}
        written[index] = WrittenTurn((*ids, *([] if ids[-1] in ends else [served.tokenizer.controls["<|eot|>"]])))
    answer = Message(Role.ASSISTANT, whole.text, whole.calls, whole.thought)
    tokens = shown["usage"]["total_tokens"] + (0 if turn.tiles is None else turn.tiles.nbytes // 4)
    kept = KeptResponse(shown, (*turn.messages, answer), written, turn.tiles, turn.session or shown["id"], tokens)
    served.responses.put(shown["id"], kept)
