"""Texts that begin together, without an engine's thread: the prompts of all slots, and then `programs.decode`.

Pure functions, for programs of their own: those of the plain engine, and of training on the model's own samples.
B slots, P tokens of the longest prompt.
"""

import jax
import jax.numpy as jnp
from jax.sharding import reshard

from maverick_jax.inference.engine.beginnings import Beginning
from maverick_jax.inference.engine.forward import PromptPieces, Scanned, SlotCache, empty_cache
from maverick_jax.inference.engine.programs import Slots, empty_slots, prefill
from maverick_jax.sharding import ShardingRules


def begun(model: Scanned, tokens: jax.Array, lengths: jax.Array, slots: Slots, context: int) -> tuple[SlotCache, Slots]:
    """Cache and slots after prompts `tokens` int32[B, P] of `lengths` int32[B], padded. B is a multiple of the groups
    of devices along the batch axes. `context`: most tokens of prompt and answer together."""
    B, P = tokens.shape
    size = min(model.rest.config.attention_chunk_size or P, P)
    count = -(-P // size)
    padded = jnp.pad(tokens, ((0, 0), (0, count * size - P)))
    pieces = padded.reshape(B, count, size).swapaxes(0, 1)

    def one(state: tuple[SlotCache, Slots], part: tuple[jax.Array, jax.Array]):
        piece, start = part
        inside = PromptPieces(piece, jnp.full_like(lengths, 0) + start, jnp.clip(lengths - start, 0, size))
        return prefill(model, *state, inside), None

    starts = jnp.arange(count, dtype=jnp.int32) * size
    state, _ = jax.lax.scan(one, (empty_cache(model, B, context), slots), (pieces, starts))
    return state


def slots_of(first: Beginning, rules: ShardingRules) -> Slots:
    """Active slots without texts, of which `first` has the entries, with a leading axis B; on the mesh in use."""
    B, V = first.rules.bias.shape
    empty = empty_slots(B, V, rules)
    entries = Slots(empty.logits, empty.length, first.limit, ~empty.active, *first[1:])
    return jax.tree.map(lambda x, like: reshard(x, jax.typeof(like).sharding), entries, empty)
