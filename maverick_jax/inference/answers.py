"""What a model writes after prompts: whole answers, and one text as it is written."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from maverick_jax.inference.decoding import text_of
from maverick_jax.inference.engine import EngineSettings, GenerationRequest, SlotEngine
from maverick_jax.inference.engine.forward import Unrolled
from maverick_jax.inference.engine.lengths import bucket, device_groups
from maverick_jax.inference.prompts import prompt_ids_of, stop_ids
from maverick_jax.inference.sampling import Sampling
from maverick_jax.model.transformer import Maverick
from maverick_jax.text import Tokenizer

AT_A_TIME = 8
"""Most answers that are written at the same time."""


def generate(
    model: Maverick | Unrolled,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    images: Sequence[Image.Image] = (),
) -> str:
    """The model's continuation of `images` and `prompt` (ordinary text), up to the end of the text and at most
    `max_tokens` tokens.

    Equal arguments give equal text. Raises InputError for arguments out of range, and for images if the model has no
    image encoder or the tokenizer no image tokens.
    """
    sampling = Sampling(temperature, top_k, top_p)
    ids, tiles = prompt_ids_of(model.config, tokenizer, prompt, images)
    request = GenerationRequest(ids, max_tokens, sampling, seed, stop_ids(tokenizer), tiles=tiles)
    return "".join(stream(model, tokenizer, request))


def stream(model: Maverick | Unrolled, tokenizer: Tokenizer, request: GenerationRequest) -> Iterator[str]:
    """Pieces of the text of an answer while it is written, without the token that ends it; no piece ends inside a
    character. Raises InputError for a request that an engine refuses."""
    with _engine(model, tokenizer, [request], steps=1) as engine:
        (generation,) = engine.submit(request)
        tokens = (token for update in generation for token in update.tokens)
        yield from text_of(tokenizer, (token for token in tokens if token not in request.stop_ids))


def answers(
    model: Maverick | Unrolled,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
    tiles: Sequence[np.ndarray | None] | None = None,
) -> list[list[int]]:
    """The model's continuation of each of `prompts` (token ids): up to `max_tokens` ids, including the one that ends
    the text. `on_progress` is called with the number of finished prompts. `tiles`, uint8 or normalized [N, C, S, S]:
    those of the pictures that each prompt shows; None: of one that shows none, or of all.

    Answer i is drawn with seed + i. Raises InputError for requests that an engine refuses.
    """
    if not prompts:
        return []
    ends, found = stop_ids(tokenizer), []
    requests = [
        GenerationRequest(prompt, max_tokens, sampling, seed + i, ends, tiles=shown)
        for i, (prompt, shown) in enumerate(zip(prompts, tiles or [None] * len(prompts), strict=True))
    ]
    with _engine(model, tokenizer, requests) as engine:
        for i, generation in enumerate([engine.submit(request)[0] for request in requests]):
            found.append(list(generation.result().tokens))
            on_progress(i + 1)
    return found


def _engine(
    model: Maverick | Unrolled,
    tokenizer: Tokenizer,
    requests: Sequence[GenerationRequest],
    steps: int = EngineSettings.steps,
) -> SlotEngine:
    """An engine for these requests alone, which compiles what they need."""
    rest = model.rest if isinstance(model, Unrolled) else model
    groups, wanted = device_groups(rest), min(AT_A_TIME, len(requests))
    context = bucket(max(len(r.prompt) + max(r.max_tokens, 0) for r in requests))
    settings = EngineSettings(
        slots=-(-wanted // groups) * groups,
        context=context,
        steps=steps,
        queue=len(requests),
        keep_bytes=0,
        lazy=True,
    )
    return SlotEngine(model, tokenizer, settings)
