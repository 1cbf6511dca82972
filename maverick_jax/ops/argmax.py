"""The most likely next token at each position, from hidden states and output matrix in chunks of rows. The vocabulary
may be split over the tensor axis; no array of [rows, V] ever exists.

c rows per chunk, D model, v vocabulary entries on this device.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import reshard

from maverick_jax.ops.collectives import vary
from maverick_jax.ops.cross_entropy import default_rows
from maverick_jax.ops.dot import dot
from maverick_jax.ops.vocabulary import first_token
from maverick_jax.sharding import ShardingRules, axes_tuple
from maverick_jax.target import traced_platform


def argmax_token(hidden, head, *, rules: ShardingRules, chunk: int | None = None):
    """int32[B, T]: argmax over V of hidden [B, T, D] of the residual stream @ head [D, V] of one dtype. The smallest id
    wins a tie."""
    batch_axes, vocab_axes = rules.tokens, axes_tuple(rules.vocab)

    def local(hidden, head):
        D, v = head.shape
        shape, head = hidden.shape[:-1], vary(head, batch_axes)
        rows = vary(hidden, vocab_axes).reshape(-1, D)
        V = v * lax.axis_size(vocab_axes) if vocab_axes else v

        def one(row):
            logits = dot(row[None], head, (1,), (0,))[0]
            best = jnp.max(logits)
            here = jnp.argmax(logits).astype(jnp.int32) + first_token(vocab_axes, v)
            whole = lax.pmax(best, vocab_axes)
            return lax.pmin(jnp.where(best == whole, here, V), vocab_axes)

        found = lax.map(one, rows, batch_size=min(chunk or default_rows(v, traced_platform()), rows.shape[0]))
        return found.reshape(shape)

    specs = (rules.storage("batch", "length", None), rules.compute("embed", "vocab"))
    placed = (reshard(x, spec) for x, spec in zip((hidden, head), specs, strict=True))
    return jax.shard_map(local, in_specs=specs, out_specs=rules.storage("batch", "length"))(*placed)


def argmax_token_reference(hidden, head):
    """The slow twin, on whole logits. Arguments and result as `argmax_token`."""
    logits = jnp.einsum("BTD,DV->BTV", hidden, head, preferred_element_type=jnp.float32)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
