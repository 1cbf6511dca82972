"""Generations under way: from the engine's thread to the event loop, ended when the client is gone."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from launch.serve.bodies import closed
from launch.serve.errors import NO_RETRY, ApiError
from launch.serve.served import Served
from maverick_jax.errors import QueueFull
from maverick_jax.inference.engine.requests import Generation, GenerationRequest, TokenFilter, Update

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@dataclasses.dataclass
class Spent:
    """Tokens of a request's answers, for `usage`."""

    completion: int = 0
    cached: int = 0
    reasoning: int = 0


def submit(served: Served, request: GenerationRequest, n: int, filters: Sequence[TokenFilter]) -> list[Generation]:
    """Queues `n` generations. With filters, one for each, they are submitted one by one. Raises ApiError if the queue
    is full; then none runs."""
    started: list[Generation] = []
    try:
        if not filters:
            return served.engine.submit(request, n)
        for i, allowed in enumerate(filters):
            one = dataclasses.replace(request, seed=request.seed + i, allowed=allowed)
            started += served.engine.submit(one)
    except QueueFull:
        for generation in started:
            generation.cancel()
        served.metrics.count_refused("queue_full")
        raise ApiError(
            429, "too many requests wait; try again", code="queue_full", headers={"retry-after": "1"}
        ) from None
    return started


async def updates(served: Served, generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Update]]:
    """(index of the generation, update), as they come, until all have ended. Whatever ends the iteration early cancels
    the generations. Raises ApiError when the time for a request is over."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[tuple[int, Update | BaseException]] = asyncio.Queue()

    def listener(index: int):
        def hear(update: Update | BaseException) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(arrived.put_nowait, (index, update))

        return hear

    running = set(range(len(generations)))
    begin, first = time.monotonic(), True
    try:
        for index, generation in enumerate(generations):
            generation.listen(listener(index))
        while running:
            left = begin + served.limits.request_seconds - time.monotonic()
            try:
                index, update = await asyncio.wait_for(arrived.get(), max(left, 0.001))
            except TimeoutError:
                most = served.limits.request_seconds
                raise ApiError(504, f"no answer within {most:.0f} s", code="timeout", headers=NO_RETRY) from None
            if isinstance(update, BaseException):
                raise update
            if first and update.tokens:
                served.metrics.observe_first_token(time.monotonic() - begin)
                first = False
            if update.finish is not None:
                running.discard(index)
            yield index, update
    finally:
        for index in running:
            generations[index].cancel()
        if running:
            served.metrics.count_cancelled(len(running))


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; raises ClientGone, and cancels it, when the client closes the connection first."""
    doing, watching = asyncio.ensure_future(work), asyncio.ensure_future(closed(request))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGone
        return doing.result()
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)
