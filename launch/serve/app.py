"""The application: all routes, behind one guard."""

import time
from collections.abc import Awaitable, Callable, Collection

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from launch.serve import tokens
from launch.serve.chat import chat_completions
from launch.serve.completions import completions
from launch.serve.errors import ApiError, internal
from launch.serve.guard import OPEN_PATH, RequestGuard
from launch.serve.page import chat_page
from launch.serve.responses import create_response, delete_response, get_response
from launch.serve.running import ClientGone
from launch.serve.served import Served, log
from maverick_jax.errors import InputError

Handler = Callable[[Served, Request], Awaitable[Response]]
GONE = 499
"""Status in the counters of requests whose client left."""


def application(served: Served, key: str, hosts: Collection[str]) -> RequestGuard:
    """The ASGI application. hosts: values of `Host` that name this server."""
    return RequestGuard(RequestCounter(routes(served), served), key, hosts, served.limits)


class RequestCounter:
    """Bounds the requests that are open, streams included."""

    def __init__(self, app: ASGIApp, served: Served):
        self.app, self.served = app, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == OPEN_PATH:
            await self.app(scope, receive, send)
            return
        metrics = self.served.metrics
        if metrics.open_requests >= self.served.limits.open_requests:
            metrics.count_refused("open_requests")
            error = ApiError(429, "too many open requests; try again", code="busy", headers={"retry-after": "1"})
            await _error(error)(scope, receive, send)
            return
        metrics.open_requests += 1
        try:
            await self.app(scope, receive, send)
        finally:
            metrics.open_requests -= 1


def routes(served: Served) -> Starlette:
    """All routes, unguarded."""
    table: list[tuple[str, str, Handler]] = [
        ("GET", "/", chat_page),
        ("GET", OPEN_PATH, _health),
        ("GET", "/metrics", _metrics),
        ("GET", "/v1/models", tokens.list_models),
        ("GET", "/v1/models/{id}", tokens.get_model),
        ("POST", "/v1/chat/completions", chat_completions),
        ("POST", "/v1/completions", completions),
        ("POST", "/v1/responses", create_response),
        ("GET", "/v1/responses/{id}", get_response),
        ("DELETE", "/v1/responses/{id}", delete_response),
        ("POST", "/tokenize", tokens.tokenize),
        ("POST", "/detokenize", tokens.detokenize),
        ("GET", "/tokenizer_info", tokens.tokenizer_info),
    ]
    made = [Route(path, _endpoint(served, path, handler), methods=[method]) for method, path, handler in table]
    return Starlette(routes=made, exception_handlers={HTTPException: _not_routed})


def _endpoint(served: Served, path: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Answers with an error object whatever goes wrong, and counts the answer."""

    async def endpoint(request: Request) -> Response:
        response = await _answered(served, request, handler)
        served.metrics.count_answer(path, response.status_code)
        return response

    return endpoint


async def _answered(served: Served, request: Request, handler: Handler) -> Response:
    try:
        return await handler(served, request)
    except ApiError as error:
        return _error(error)
    except InputError as error:
        return _error(ApiError(400, str(error)))
    except (ClientGone, ClientDisconnect):
        return Response(status_code=GONE)
    except Exception:
        log.exception("%s %s failed", request.method, request.url.path)
        return _error(internal())


def _error(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def _not_routed(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    problem = "no such route" if status == 404 else "the route does not take this method"
    return _error(ApiError(status, f"{request.method} {request.url.path[:80]}: {problem}", code="unknown_url"))


async def _health(served: Served, request: Request) -> Response:
    return JSONResponse({"status": "ok", "uptime_seconds": int(time.time()) - served.created})


async def _metrics(served: Served, request: Request) -> Response:
    return PlainTextResponse(served.metrics.text(served.engine.status()), media_type="text/plain; version=0.0.4")
