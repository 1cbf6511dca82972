"""Whole answers to many prompts, several written at a time."""

from collections.abc import Callable, Sequence

import numpy as np

from maverick_jax.inference.sampler import sample_tokens, stop_ids
from maverick_jax.inference.sampling import Sampling
from maverick_jax.model.transformer import Maverick
from maverick_jax.text import Tokenizer

AT_A_TIME = 8


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

    Prompts of similar length are continued together. Equal prompts get different samples, unless the temperature is 0.
    Raises InputError as `sample_tokens` does.
    """
    stops = stop_ids(tokenizer)
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for done in range(0, len(order), AT_A_TIME):
        some = order[done : done + AT_A_TIME]
        waiting = set(some)
        tiles = None if pixel_values is None else np.concatenate([pixel_values] * len(some))
        for tokens in sample_tokens(model, [prompts[i] for i in some], max_tokens, sampling, seed, tiles, done):
            for i, token in zip(some, tokens.tolist(), strict=True):
                if i in waiting:
                    found[i].append(token)
            waiting -= {i for i in waiting if found[i][-1] in stops}
            if not waiting:
                break
        on_progress(done + len(some))
    return found
