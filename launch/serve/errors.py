"""Errors as OpenAI's clients expect them: a status and `{"error": {message, type, param, code}}`."""

from collections.abc import Mapping
from typing import Any

from maverick_jax.errors import harmless

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
NO_RETRY = {"x-should-retry": "false"}
"""Clients send a failed request again on 408, 409, 429 and from 500 on, unless the answer says that it is of no use."""


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        shown = {"message": harmless(self.message), "type": kind, "param": self.param, "code": self.code}
        return {"error": shown}


def refused(param: str, problem: str) -> ApiError:
    """400 for one field of a request."""
    return ApiError(400, f"{param}: {problem}", param=param)


def internal() -> ApiError:
    """500 for a bug; the log has its traceback, the client learns nothing of it."""
    return ApiError(500, "the server failed; its log says how", code="internal_error", headers=NO_RETRY)
