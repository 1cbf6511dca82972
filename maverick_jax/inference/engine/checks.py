"""What an engine refuses at once: requests that can never run."""

from collections.abc import Sequence

import numpy as np

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.inference.engine.requests import MAX_STOPS, MAX_TOP, GenerationRequest


def require_request(request: GenerationRequest, vocab_size: int, context: int, has_tokenizer: bool) -> None:
    """Raises InputError for a request that an engine cannot run."""
    r = request
    require_tokens(r.prompt, vocab_size, "prompt")
    if r.max_tokens < 0:
        raise InputError(f"max_tokens: {r.max_tokens}; expected 0 or more")
    if len(r.prompt) + r.max_tokens > context:
        total = f"{len(r.prompt):,} tokens of prompt and {r.max_tokens:,} of max_tokens"
        raise InputError(f"{total} are {len(r.prompt) + r.max_tokens:,}; expected at most {context:,}, the context")
    if len(r.stop_ids) > MAX_STOPS:
        raise InputError(f"stop_ids: {len(r.stop_ids)} tokens; expected at most {MAX_STOPS}")
    if not all(r.stop_texts):
        raise InputError("stop_texts: one is empty; expected texts of a character or more")
    if r.stop_texts and not has_tokenizer:
        raise InputError("stop_texts: this engine has no tokenizer; expected none, or stop_ids")
    require_top(r.log_probs or 0, "log_probs")
    for name, ids in (("stop_ids", r.stop_ids), ("logit_bias", r.sampling.logit_bias)):
        if wrong := [i for i in ids if not 0 <= i < vocab_size]:
            raise InputError(f"{name}: id {wrong[0]}; expected 0 to {vocab_size - 1}, the vocabulary")


def require_top(top: int, name: str) -> None:
    """Raises InputError for more likeliest tokens than an engine reports."""
    if not 0 <= top <= MAX_TOP:
        raise InputError(f"{name}: {top}; expected 0 to {MAX_TOP}")


def require_no_latents(tokens: Sequence[int], config: ModelConfig, what: str) -> None:
    """Raises InputError, which begins with `what`, for a text with latent thoughts."""
    if config.latent is not None and config.latent.token_id in tokens:
        raise InputError(f"{what} computes no latent thoughts, which token {config.latent.token_id} stands for; "
                         "expected a text without")  # fmt: skip


def require_tokens(tokens: Sequence[int], vocab_size: int, name: str) -> None:
    """Raises InputError unless there are tokens, all of the vocabulary."""
    if not len(tokens):
        raise InputError(f"{name}: no tokens; expected one or more")
    ids = np.asarray(tokens)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{name}: {ids.dtype} of shape {ids.shape}; expected a list of token ids")
    if not 0 <= ids.min() <= ids.max() < vocab_size:
        raise InputError(f"{name}: ids {ids.min()} to {ids.max()}; expected 0 to {vocab_size - 1}, the vocabulary")
