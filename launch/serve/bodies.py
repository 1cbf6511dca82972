"""Reads the JSON body of a request, within the limits."""

import asyncio
import itertools
import json
import re
from typing import Any

from starlette.requests import Request

from launch.serve.errors import ApiError
from launch.serve.limits import RequestLimits
from maverick_jax.files import no_constant, once

_TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


async def read_object(request: Request, limits: RequestLimits) -> dict[str, Any]:
    """The object in the body. Raises ApiError for any other body and for one beyond the limits; ClientDisconnect."""
    try:
        async with asyncio.timeout(limits.body_seconds):
            content = await _content(request, limits.body)
    except TimeoutError:
        raise ApiError(408, f"body: did not arrive within {limits.body_seconds:.0f} s") from None
    return parse_object(content, limits)


async def _content(request: Request, most: int) -> bytes:
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > most:
            raise ApiError(413, f"body: larger than {most:,} bytes, the limit")
    return bytes(content)


def parse_object(content: bytes, limits: RequestLimits) -> dict[str, Any]:
    """The JSON object in `content`; its size and nesting are checked before Python builds it."""
    _check_size(content, limits)
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=once, parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"body: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, f"body: not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ApiError(400, f"body: nested deeper than {limits.depth} levels, the limit") from None
    except ValueError as error:
        raise ApiError(400, f"body: not JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise ApiError(400, "body: expected a JSON object")
    return found


def _check_size(content: bytes, limits: RequestLimits) -> None:
    if content.count(b'"') > 2 * limits.texts:
        texts = sum(1 for _ in itertools.islice(_TEXTS.finditer(content), limits.texts + 1))
        if texts > limits.texts:
            raise ApiError(400, f"body: more than {limits.texts:,} texts, the limit")
    opening = content.count(b"[") + content.count(b"{")
    if opening > limits.depth or content.count(b",") > limits.items:
        content = _TEXTS.sub(b"", content)  # brackets and commas in texts do not count
    depth = deepest = containers = 0
    for bracket in _BRACKET.finditer(content) if opening > limits.depth else ():
        step = 1 if bracket[0] in b"[{" else -1
        depth += step
        containers += step > 0
        deepest = max(deepest, depth)
        if containers > limits.containers:
            break
    if deepest > limits.depth:
        raise ApiError(400, f"body: nested deeper than {limits.depth} levels, the limit")
    if containers > limits.containers:
        raise ApiError(400, f"body: more than {limits.containers:,} lists and objects, the limit")
    if content.count(b",") > limits.items:
        raise ApiError(400, f"body: more than {limits.items:,} values, the limit")


async def closed(request: Request) -> None:
    """Returns when the client has closed the connection. Only after the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
