"""What a request must show before it reaches a route: our host, no foreign origin, the key, and a JSON body."""

import base64
import binascii
from collections.abc import Collection, Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from launch.serve import keys
from launch.serve.errors import ApiError
from launch.serve.limits import RequestLimits

OPEN_PATH = "/health"
"""The one path that is answered without the key."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
METHODS_WITH_BODY = ("POST", "PUT", "PATCH")
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


class RequestGuard:
    """Stands before the routes, so that a route that is added later is guarded too.

    The host must be one of ours: a page whose name resolves to this machine (DNS rebinding) has another one. A page of
    another origin is refused too, and there are no CORS headers. The key is read from the `Authorization` header alone:
    `Bearer KEY`, or `Basic` with any name and the key as password, which browsers can send."""

    def __init__(self, app: ASGIApp, key: str, hosts: Collection[str], limits: RequestLimits):
        self.app, self.key, self.limits = app, key, limits
        self.hosts = frozenset(hosts)
        self.origins = frozenset(f"{scheme}://{host}" for host in hosts for scheme in ("http", "https"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._check(scope)
        except ApiError as error:
            response = JSONResponse(error.body(), error.status, {**error.headers, **SECURITY_HEADERS})
            await response(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in SECURITY_HEADERS.items() if k.encode() not in given]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self.app(scope, receive, with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if len(headers.getlist("host")) != 1 or headers["host"].lower() not in self.hosts:
            raise ApiError(403, "host: not a name of this server; expected the address that it printed at its start")
        for origin in headers.getlist("origin"):
            if origin.lower() not in self.origins:
                raise ApiError(403, "origin: pages of other origins may not use this server")
        if scope["path"] != OPEN_PATH:
            self._check_key(scope, headers)
        if scope["method"] in METHODS_WITH_BODY:
            self._check_body(headers)

    def _check_key(self, scope: Scope, headers: Mapping[str, str]) -> None:
        given = _given_key(headers.get("authorization", ""))
        if given is None or not keys.same(given, self.key):
            asked_by_page = scope["method"] == "GET" and "text/html" in headers.get("accept", "")
            scheme = 'Basic realm="maverick: any name, the key as password"' if asked_by_page else "Bearer"
            problem = "the key is missing" if given is None else "the key is wrong"
            raise ApiError(
                401,
                f"{problem}; expected the header `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": scheme},
            )

    def _check_body(self, headers: Mapping[str, str]) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "content-type: expected application/json")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "content-encoding: compressed bodies are not read")
        length = headers.get("content-length")
        if length is not None and (not length.isdigit() or len(length) > 18 or int(length) > self.limits.body):
            raise ApiError(413, f"body: larger than {self.limits.body:,} bytes, the limit")


def _given_key(authorization: str) -> bytes | None:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("utf-8", "surrogateescape") or None
    if scheme.lower() == "basic":
        try:
            _, colon, password = base64.b64decode(value.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return None
        return password if colon and password else None
    return None
