"""Log-probabilities of given tokens and of the likeliest ones in their places, straight from hidden states and output
matrix, in chunks of rows. The vocabulary may be split over devices; no array of [rows, V] ever exists.

c rows per chunk, D model, v vocabulary entries on this device.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maverick_jax.ops.collectives import vary
from maverick_jax.ops.cross_entropy import default_rows
from maverick_jax.ops.dot import dot
from maverick_jax.ops.top_k import largest
from maverick_jax.ops.vocabulary import chunks, gather, log_softmax, unchunked
from maverick_jax.sharding import ShardingRules, axes_tuple
from maverick_jax.target import traced_platform


class ScoredTokens(NamedTuple):
    """Log-probabilities at temperature 1, in nats."""

    log_probs: jax.Array
    """float32[B, T]: of the given tokens."""
    top_ids: jax.Array
    """int32[B, T, k]: the likeliest tokens, likeliest first; the smaller id comes first in a tie."""
    top_log_probs: jax.Array
    """float32[B, T, k]"""


def token_scores(hidden, head, tokens, k: int, *, rules: ShardingRules, chunk: int | None = None) -> ScoredTokens:
    """Scores of `tokens` int32[B, T] after hidden [B, T, D], with head [D, V] in the same dtype."""
    batch_axes, vocab_axes = rules.tokens, axes_tuple(rules.vocab)

    def local(hidden, head, tokens):
        v, shape = head.shape[1], tokens.shape
        hidden, head = vary(hidden, vocab_axes), vary(head, batch_axes)
        rows = min(chunk or default_rows(v, traced_platform()), tokens.size)

        def one(part):
            log_probs = log_softmax(vocab_axes, dot(part[0], head, (1,), (0,)))
            top, ids = largest(vocab_axes, k, log_probs)
            return ScoredTokens(gather(vocab_axes, log_probs, part[1][:, None])[:, 0], ids, top)

        flat = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1)
        found = lax.map(one, chunks(rows, *flat))
        return jax.tree.map(lambda x: unchunked(x, tokens.size).reshape(*shape, *x.shape[2:]), found)

    places = rules.storage("batch", "length")
    specs = (places, rules.compute("embed", "vocab"), places)
    return jax.shard_map(local, in_specs=specs, out_specs=places)(hidden, head, tokens)


def token_scores_reference(hidden, head, tokens, k: int) -> ScoredTokens:
    """The slow twin, on whole logits. Arguments and result as `token_scores`."""
    logits = jnp.einsum("BTD,DV->BTV", hidden, head, preferred_element_type=jnp.float32)
    log_probs = jax.nn.log_softmax(logits)
    top, ids = lax.top_k(log_probs, k)
    return ScoredTokens(jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0], ids, top)
