"""Server-sent events: an answer in pieces, with pings while nothing happens."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from launch.serve.errors import ApiError, internal
from launch.serve.served import Served, log

PING = b": ping\n\n"
PING_SECONDS = 15.0
DONE = b"data: [DONE]\n\n"


def event(value: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event. JSON has no line breaks, so that one line of data holds it."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'), allow_nan=False)}\n\n".encode()


class EventStream(Response):
    """Sends events as they come. If the client leaves, or reads nothing for a while, the iteration ends, and with it
    the generations behind it. An error after the beginning becomes an event."""

    media_type = "text/event-stream"

    def __init__(self, served: Served, events: AsyncGenerator[bytes], close: Callable[[], Awaitable[None]]):
        """close: called at the end, whatever happened."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._close, self._limits = events, close, served.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        watching = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({writing, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writing, watching):
                task.cancel()
            await asyncio.gather(writing, watching, return_exceptions=True)
            await self._events.aclose()
            await self._close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with contextlib.suppress(TimeoutError, OSError):  # the client does not read, or is gone
            async for piece in self._with_pings():
                async with asyncio.timeout(self._limits.write_seconds):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _with_pings(self) -> AsyncIterator[bytes]:
        waiting = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(self._events, None))
                done, _ = await asyncio.wait({waiting}, timeout=PING_SECONDS)
                if not done:
                    yield PING
                    continue
                piece, waiting = waiting.result(), None
                if piece is None:
                    return
                yield piece
        except ApiError as error:
            yield event(error.body())
        except Exception:
            log.exception("a stream failed")
            yield event(internal().body())
        finally:
            if waiting is not None:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
