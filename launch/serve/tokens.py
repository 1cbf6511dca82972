"""Routes that turn text into token ids and back, and tell which model is served."""

from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from launch.serve.bodies import read_object
from launch.serve.errors import refused
from launch.serve.fields import RequestBody
from launch.serve.limits import LIMITS
from launch.serve.served import Served
from maverick_jax.errors import InputError


class TokenizeRequest(RequestBody):
    model: str | None = None
    prompt: str | None = None
    """A text. If it is exactly one control token, its id is given, so that clients can ask for it."""
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=LIMITS.messages)] | None = None
    """Messages of the chat API instead, with the header of the answer."""
    tools: Annotated[list[dict[str, Any]], Field(max_length=LIMITS.tools)] | None = None
    add_special_tokens: bool | None = None
    """Put the token that begins texts first (default: true, for `prompt`)."""
    return_token_strs: bool | None = None


class DetokenizeRequest(RequestBody):
    model: str | None = None
    tokens: Annotated[list[int], Field(max_length=LIMITS.items)]


async def tokenize(served: Served, request: Request) -> Response:
    body = TokenizeRequest.read(await read_object(request, served.limits))
    if (body.prompt is None) == (body.messages is None):
        raise refused("prompt", "expected either `prompt` or `messages`")
    ids = await served.in_thread(_ids, served, body)
    found = {"tokens": ids, "count": len(ids), "max_model_len": served.engine.context}
    if body.return_token_strs:
        found["token_strs"] = [served.tokenizer.decode([token], controls=True) for token in ids]
    return JSONResponse(found)


def _ids(served: Served, body: TokenizeRequest) -> list[int]:
    if body.messages is not None:
        messages, tiles = served.prompts.messages(body.messages)
        return served.prompts.prompt(messages, served.prompts.tools(body.tools or []), tiles).ids
    assert body.prompt is not None
    if body.prompt in served.tokenizer.controls:
        return [served.tokenizer.controls[body.prompt]]
    try:
        ids = served.tokenizer.encode(body.prompt)
    except InputError as error:
        raise refused("prompt", str(error)) from None
    first = served.tokenizer.bos_id if body.add_special_tokens is not False else None
    return ids if first is None else [first, *ids]


async def detokenize(served: Served, request: Request) -> Response:
    body = DetokenizeRequest.read(await read_object(request, served.limits))
    return JSONResponse({"prompt": await served.in_thread(_text, served, body.tokens)})


def _text(served: Served, tokens: list[int]) -> str:
    return served.tokenizer.decode(tokens, controls=True)


async def tokenizer_info(served: Served, request: Request) -> Response:
    names = {token: name for name, token in served.tokenizer.controls.items()}
    of = lambda token: names.get(token) if token is not None else None
    tokenizer = served.tokenizer
    return JSONResponse(
        {
            "tokenizer_class": type(tokenizer).__name__,
            "bos_token": of(tokenizer.bos_id),
            "eos_token": of(tokenizer.eos_id),
            "pad_token": of(tokenizer.pad_id),
            "vocab_size": tokenizer.vocab_size,
            "chat_template": None,
            "dialect": served.dialect.name,
            "begins_prompts": served.options.begin_prompts,
        }
    )


async def list_models(served: Served, request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_model(served)]})


async def get_model(served: Served, request: Request) -> Response:
    served.require_model(request.path_params["id"])
    return JSONResponse(_model(served))


def _model(served: Served) -> dict[str, Any]:
    return {
        "id": served.options.name,
        "object": "model",
        "created": served.created,
        "owned_by": "maverick-jax",
        "max_model_len": served.engine.context,
    }
