"""Texts that begin together, without an engine's thread: the prompts of all slots, and then `programs.decode`.

Pure functions, for programs of their own: those of the plain engine, and of training on the model's own samples.
B slots, P tokens of the longest prompt.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import reshard

from maverick_jax.config import ModelConfig
from maverick_jax.inference.engine.beginnings import Beginning
from maverick_jax.inference.engine.forward import PromptPieces, Scanned, SlotCache, empty_cache
from maverick_jax.inference.engine.programs import Slots, empty_slots, prefill
from maverick_jax.sharding import ShardingRules


class ShownPictures(NamedTuple):
    """The pictures of a group's prompts."""

    shown: jax.Array
    """bool[B, P]: tokens that they take the place of."""
    features: jax.Array
    """[B, P, D], where they are shown."""


def begun(
    model: Scanned,
    tokens: jax.Array,
    lengths: jax.Array,
    slots: Slots,
    context: int,
    seen: ShownPictures | None = None,
    marks: jax.Array | None = None,
) -> tuple[SlotCache, Slots]:
    """Cache and slots after prompts `tokens` int32[B, P] of `lengths` int32[B], padded. B is a multiple of the groups
    of devices along the batch axes. `context`: most tokens of prompt and answer together. `marks` uint8[B, P]: what
    prompts are to reasoning heads; None: nothing."""
    B, P = tokens.shape
    size = min(model.rest.config.attention_chunk_size or P, P)
    count = -(-P // size)

    def cut(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, count * size - P if axis == 1 else 0) for axis in range(x.ndim)])
        return padded.reshape(B, count, size, *x.shape[2:]).swapaxes(0, 1)

    def one(state: tuple[SlotCache, Slots], part):
        (piece, seen, marks), start = part
        inside = PromptPieces(piece, jnp.full_like(lengths, 0) + start, jnp.clip(lengths - start, 0, size))
        inside = inside._replace(marks=marks, seen=state[1].seen)
        return prefill(model, *state, inside._replace(**(seen._asdict() if seen else {}))), None

    starts = jnp.arange(count, dtype=jnp.int32) * size
    parts = jax.tree.map(cut, (tokens, seen, marks))
    state, _ = jax.lax.scan(one, (empty_cache(model, B, context), slots), (parts, starts))
    return state


def slots_of(first: Beginning, config: ModelConfig, rules: ShardingRules) -> Slots:
    """Active slots without texts, of which `first` has the entries, with a leading axis B; on the mesh in use."""
    empty = empty_slots(first.limit.shape[0], config, rules)
    more = {"hidden": empty.hidden, "seen": empty.seen}
    entries = Slots(empty.logits, empty.length, first.limit, ~empty.active, *first[1:], **more)
    return jax.tree.map(lambda x, like: reshard(x, jax.typeof(like).sharding), entries, empty)
