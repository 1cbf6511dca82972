"""Whole answers to many prompts."""

from collections.abc import Callable, Sequence

import numpy as np

from maverick_jax.inference.engine import EngineSettings, GenerationRequest, SlotEngine
from maverick_jax.inference.sampler import bucket, stop_ids
from maverick_jax.inference.sampling import Sampling
from maverick_jax.model.transformer import Maverick
from maverick_jax.text import Tokenizer

AT_A_TIME = 8
"""Most answers that are written at the same time."""


def answers(
    model: Maverick,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
    pixel_values: np.ndarray | None = None,
) -> list[list[int]]:
    """The model's continuation of each of `prompts` (token ids): up to `max_tokens` ids, including the one that ends
    the text. `on_progress` is called with the number of finished prompts. `pixel_values`, float[N, C, S, S]: the tiles
    of the images that every prompt shows.

    Answer i is drawn with seed + i. Raises InputError for requests that an engine refuses.
    """
    if not prompts:
        return []
    settings = EngineSettings(
        slots=min(AT_A_TIME, len(prompts)),
        context=bucket(max(map(len, prompts)) + max_tokens),
        queue=len(prompts),
        keep_bytes=0,
        lazy=True,
    )
    ends = stop_ids(tokenizer)
    found = []
    with SlotEngine(model, tokenizer, settings) as engine:
        requests = (
            GenerationRequest(prompt, max_tokens, sampling, seed + i, ends, tiles=pixel_values)
            for i, prompt in enumerate(prompts)
        )
        for i, generation in enumerate([engine.submit(request)[0] for request in requests]):
            found.append(list(generation.result().tokens))
            on_progress(i + 1)
    return found
