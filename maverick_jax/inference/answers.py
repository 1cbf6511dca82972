"""Answers many prompts in batches."""

from collections.abc import Callable, Sequence

from maverick_jax.inference.sampler import Sampling, sample_tokens, stop_ids
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
) -> list[list[int]]:
    """The model's answer to each of `prompts`, as token ids: at most `max_tokens`, including the token that ends the
    text. `on_progress` is called with the number of prompts that are done.

    Prompts of similar length are answered together. Raises InputError like `sample_tokens`.
    """
    stops = stop_ids(tokenizer)
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for done in range(0, len(order), AT_A_TIME):
        some = order[done : done + AT_A_TIME]
        waiting = set(some)
        for tokens in sample_tokens(model, [prompts[i] for i in some], max_tokens, sampling, seed):
            for i, token in zip(some, tokens.tolist(), strict=True):
                if i in waiting:
                    found[i].append(token)
            waiting -= {i for i in waiting if found[i][-1] in stops}
            if not waiting:
                break
        on_progress(done + len(some))
    return found
