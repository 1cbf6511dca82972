"""What all routes share: the engine, the model's tokenizer and dialect, the limits and the counters."""

import asyncio
import concurrent.futures
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from data.guard import Gate
from launch.serve.errors import ApiError
from launch.serve.gating import ServedGate
from launch.serve.grammar import Grammars
from launch.serve.limits import LIMITS, RequestLimits
from launch.serve.metrics import ServerMetrics
from launch.serve.pictures import PictureReader
from launch.serve.prompts import PromptMaker
from launch.serve.response_store import ResponseStore
from maverick_jax.images import ImageConfig
from maverick_jax.inference.call_names import CallNames
from maverick_jax.inference.engine.requests import Engine, TokenScore
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import dialect_of

T = TypeVar("T")
log = logging.getLogger("maverick.serve")


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """What a user may choose."""

    name: str
    """The model's name in requests."""
    dialect: str | None = None
    """The dialect of calls; None: the tokenizer's, or else the default."""
    image_root: pathlib.Path | None = None
    """Folder whose files `file:` URLs may name."""
    begin_prompts: bool = False
    """Put the token that begins texts before prompts of token ids that lack it (completions)."""
    gate: Gate | None = None
    """What holds calls back that a policy does not allow; None: every call reaches the client."""
    limits: RequestLimits = LIMITS
    latents: int = 0
    """Latent thoughts before each answer of a chat."""


class Served:
    """A model that is served, and the state of its server."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, images: ImageConfig | None, options: ServeOptions):
        """images: None for a model without image encoder."""
        self.engine, self.tokenizer, self.options, self.limits = engine, tokenizer, options, options.limits
        self.dialect = dialect_of(options.dialect, tokenizer)
        self.grammars = Grammars(tokenizer, engine.vocab_size)
        pictures = PictureReader(images, tokenizer, options.image_root, self.limits)
        self.prompts = PromptMaker(tokenizer, self.dialect, pictures, options.latents)
        self.metrics = ServerMetrics()
        names = CallNames(tokenizer, self.dialect, engine.vocab_size) if options.gate else None
        self.gate = ServedGate(options.gate, names, self.metrics) if options.gate and names else None
        self.responses = ResponseStore(self.limits.kept_responses, self.limits.kept_tokens)
        self.created = int(time.time())
        self.fingerprint = f"fp_{tokenizer.fingerprint[:12]}"
        self._threads = concurrent.futures.ThreadPoolExecutor(2, "serve")
        self._scoring = concurrent.futures.ThreadPoolExecutor(4, "serve-score")

    async def in_thread(self, work: Callable[..., T], *given: Any) -> T:
        """`work(*given)` beside the event loop: tokenizing, decoding of pictures."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)

    async def score(self, sequences: Sequence[Sequence[int]], top: int) -> list[list[TokenScore]]:
        """`Engine.score`, beside the event loop and what `in_thread` does."""
        return await asyncio.get_running_loop().run_in_executor(self._scoring, self.engine.score, sequences, top)

    def require_model(self, name: str) -> None:
        if name != self.options.name:
            message = f"model: {name[:80]!r} is not served; expected {self.options.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def require_room(self, prompt: int, limit: int | None, param: str) -> int:
        """Most tokens of an answer to a prompt of so many tokens. Raises ApiError if they do not fit."""
        context = self.engine.context
        if prompt + (1 if limit is None else limit) > context:
            asked = "" if limit is None else f" and an answer of {limit:,}"
            message = f"{param}: a prompt of {prompt:,} tokens{asked}; the model's context has {context:,}"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        return context - prompt if limit is None else limit

    def close(self) -> None:
        for pool in (self._threads, self._scoring):
            pool.shutdown(wait=False, cancel_futures=True)
        self.engine.close()
