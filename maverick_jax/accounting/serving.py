"""Memory of an engine's slots and the time to the first token of an answer, in closed form."""

import math
from typing import NamedTuple

from maverick_jax import parameters
from maverick_jax.accounting import reasoning
from maverick_jax.accounting.flops import NOTHING, flops_per_token
from maverick_jax.accounting.layout import BYTES
from maverick_jax.config import ModelConfig


def text_bytes(config: ModelConfig, context: int) -> dict[str, int]:
    """Bytes of the keys and values of one text on all devices: `per_token` in the layers with global attention, and
    `rings` in those with local attention, of which each keeps a chunk, and of texts shorter than that, `context`; with
    reasoning heads, `marked`, of their own keys. Layers that repeat count each time."""
    position = 2 * config.num_key_value_heads * config.head_dim * BYTES[config.compute_dtype]
    size = config.attention_chunk_size
    layers = [config.layer(i) for i in config.visits]
    local = 0 if size is None else sum(spec.rope for spec in layers)
    found = {"per_token": position * (len(layers) - local), "rings": position * local * min(size or 0, context)}
    marked = sum(reasoning.kept_bytes(config, spec) for spec in layers)
    return found | ({"marked": marked} if marked else {})


def slot_bytes(config: ModelConfig, context: int) -> int:
    """Bytes of the keys and values of one slot for texts of up to `context` tokens, on all devices."""
    found = text_bytes(config, context)
    return found["per_token"] * context + found["rings"] + found.get("marked", 0)


def state_bytes(config: ModelConfig) -> int:
    """Bytes of what a slot holds beside keys and values, on each device: per token of the vocabulary logits, counts and
    biases of 4 bytes each, and whether it is in the prompt."""
    return 13 * config.vocab_size


# ---- time to the first token -----------------------------------------------------------------------------------------


class Rates(NamedTuple):
    """What all devices of an engine together reach."""

    flops: float
    """FLOP/s of matrix products."""
    memory: float
    """Bytes/s of memory."""


def read_bytes(config: ModelConfig, tokens: int, length: int) -> float:
    """Bytes that a pass over `tokens` tokens reads at least: weights, of routed experts those that even routing picks,
    and the keys and values of the `length` positions before."""
    E, k = config.num_local_experts, config.num_experts_per_tok
    chosen = 1 - (1 - k / E) ** tokens if E else 0.0
    share = lambda p: chosen if p.role == "experts" else 0.0 if p.role in ("embed", *parameters.VISION_ROLES) else 1.0
    weights = sum(p.size * share(p) for p in parameters.of_model(config)) * BYTES[config.param_dtype]
    return weights + (slot_bytes(config, length) if length else 0)


def piece_seconds(config: ModelConfig, tokens: int, before: int, rates: Rates) -> float:
    """Of a pass over `tokens` tokens of one text after `before` others, with the logits of the last: its products or
    its memory traffic, whichever takes longer."""
    of_row = lambda length: flops_per_token(config, max(1, length), NOTHING)
    whole, first = of_row(before + tokens), of_row(before)
    products = sum(flops for part, flops in whole.items() if part not in ("attention_scores", "head")) * tokens
    scores = whole["attention_scores"] * (before + tokens) - first["attention_scores"] * before
    return max((products + scores + whole["head"]) / rates.flops, read_bytes(config, tokens, before) / rates.memory)


def first_token_seconds(config: ModelConfig, prompt: int, latents: int, rates: Rates, piece: int = 2048) -> float:
    """From a prompt of `prompt` tokens, computed in pieces of `piece`, to the logits of the answer's first token.
    Latents stand between two tokens that begin and end the thought: each is a pass of its own, as is the end."""
    starts = range(0, prompt + bool(latents), piece)
    ends = [min(start + piece, prompt + bool(latents)) for start in starts]
    total = sum(piece_seconds(config, end - start, start, rates) for start, end in zip(starts, ends, strict=True))
    alone = latents + bool(latents)
    return total + sum(piece_seconds(config, 1, ends[-1] + i, rates) for i in range(alone))


def latents_for(config: ModelConfig, prompt: int, share: float, rates: Rates) -> int:
    """The most latents that lengthen the time to the first token by at most `share`."""
    plain = first_token_seconds(config, prompt, 0, rates)
    one, two = (first_token_seconds(config, prompt, n, rates) for n in (1, 2))
    return max(0, math.floor((plain * (1 + share) - one) / (two - one)) + 1)
