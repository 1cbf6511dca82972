"""The chat page: one HTML file that asks for nothing but this server's routes."""

import functools
import importlib.resources

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from launch.serve.served import Served

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def chat_page(served: Served, request: Request) -> Response:
    return HTMLResponse(_page(), headers={"content-security-policy": POLICY})


@functools.cache
def _page() -> str:
    return (importlib.resources.files("launch.serve") / "page.html").read_text("utf-8")
