"""Attention to marked tokens alone: all earlier ones of the query's segment, however far back.

The keys of a row's marked tokens are gathered into slots, in their order, so that the cost of a query grows with the
number of slots and not with the row. B rows, T tokens, C slots, S query heads, H head dim; there is one key/value head.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import reshard

from maverick_jax.ops.attention import MaskSpec, Segments, attention_over
from maverick_jax.ops.attention.blocked import MAX_BLOCKS, MIN_BLOCK
from maverick_jax.ops.attention.spec import MASKED
from maverick_jax.ops.collectives import vary
from maverick_jax.ops.row_split import split_rows, whole_rows
from maverick_jax.ops.stages import shard_map
from maverick_jax.sharding import ShardingRules, axes_tuple

_NOWHERE = -1
"""Segment of an empty slot."""


@dataclasses.dataclass(frozen=True)
class Marked:
    """Where the marked tokens of rows are, and which of them a token sees."""

    slot: jax.Array
    """int32[B, T]: the slot of a marked token; C for others."""
    queries: Segments
    """`positions`: the last slot that a token may see. [B, T]"""
    sees: jax.Array
    """bool[B, T]: whether a token sees any."""
    keys: Segments
    """The slots' numbers and segments. [B, C]"""


jax.tree_util.register_dataclass(Marked)


def marked(is_marked: jax.Array, segment_ids: jax.Array, capacity: int, rules: ShardingRules) -> Marked:
    """The marked tokens of rows, from bool[B, T] and int32[B, T], split as `RowSplit` says. Of a row with more than
    `capacity` marked tokens, those beyond it are not seen."""
    rows = rules("batch", None)
    specs = Marked(rows, Segments(rows, rows), rows, Segments(rows, rows))

    def local(is_marked, ids) -> Marked:
        count = jnp.cumsum(is_marked, axis=1, dtype=jnp.int32)
        slot = jnp.where(is_marked, jnp.minimum(count - 1, capacity), capacity)
        index = jnp.arange(ids.shape[0])[:, None]
        of_slot = jnp.full((ids.shape[0], capacity), _NOWHERE, jnp.int32)
        of_slot = vary(of_slot, axes_tuple(rules.batch)).at[index, slot].set(ids, mode="drop")
        begins = jnp.concatenate([jnp.ones_like(ids[:, :1], bool), ids[:, 1:] != ids[:, :-1]], axis=1)
        before = lax.cummax(jnp.where(begins, count - is_marked.astype(jnp.int32), 0), axis=1)
        numbers = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), of_slot.shape)
        numbers = vary(numbers, axes_tuple(rules.batch))
        return Marked(slot, Segments(count - 1, ids), (count > before) & (ids > 0), Segments(numbers, of_slot))

    whole = (whole_rows(x, rules) for x in (is_marked, segment_ids))
    found = shard_map(local, in_specs=(rows, rows), out_specs=specs)(*whole)
    split = lambda x: reshard(split_rows(x, rules), rules("batch", "length"))
    return Marked(split(found.slot), jax.tree.map(split, found.queries), split(found.sees), found.keys)


def attention_to_marked(q, k, v, where: Marked, rules: ShardingRules) -> jax.Array:
    """Attention of q [B,T,S,H] to the keys k and v [B,T,1,H] of marked tokens -> [B,T,S,H]; zeros where a token sees
    none. Devices that share a row add up the slots that each of them fills."""
    heads, token, rows = rules("batch", "length", "heads", None), rules("batch", "length"), rules("batch", None)
    kv = rules("batch", "length", None, None)
    specs = Marked(token, Segments(token, token), token, Segments(rows, rows))
    varying = (*axes_tuple(rules.length), *axes_tuple(rules.heads))

    def local(q, k, v, where: Marked):
        in_slots = lambda x: vary(_in_slots(x, where.slot, where.keys.positions.shape[1], rules), varying)
        of_devices = lambda x, axes: jax.tree.map(lambda leaf: vary(leaf, axes), x)
        keys = of_devices(where.keys, varying)
        queries, sees = (of_devices(x, axes_tuple(rules.heads)) for x in (where.queries, where.sees))
        return attention_to_slots(q, in_slots(k), in_slots(v), queries, sees, keys)

    return shard_map(local, in_specs=(heads, kv, kv, specs), out_specs=heads)(q, k, v, where)


def _in_slots(x, slot, capacity: int, rules: ShardingRules):
    """x [B,t,1,H] of this device's tokens -> [B,C,1,H], with what other devices of the row put there."""
    empty = jnp.zeros_like(x, shape=(x.shape[0], capacity, *x.shape[2:]))
    filled = empty.at[jnp.arange(x.shape[0])[:, None], slot].set(x, mode="drop")
    return lax.psum(filled, axes_tuple(rules.length))


def attention_to_slots(q, k, v, queries: Segments, sees, keys: Segments) -> jax.Array:
    """Attention of q [B,T,S,H] to the slots k and v [B,C,1,H] on one device; zeros where `sees` is false."""
    T, outputs = q.shape[1], []
    block = max(MIN_BLOCK, -(-T // MAX_BLOCKS))
    for start in range(0, T, block):
        cut = lambda x, start=start: x[:, start : start + block]
        outputs.append(attention_over(cut(q), k, v, MaskSpec(), jax.tree.map(cut, queries), keys))
    out = jnp.concatenate(outputs, axis=1) if len(outputs) > 1 else outputs[0]
    return jnp.where(sees[:, :, None, None], out, 0)


def attention_to_marked_reference(q, k, v, is_marked, segment_ids) -> jax.Array:
    """The slow twin, on one device: all scores and a dense mask. Rows in their own order."""
    T = q.shape[1]
    scores = jnp.einsum("BTSH,BUH->BSTU", q, k[:, :, 0], preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    earlier = jnp.arange(T)[:, None] >= jnp.arange(T)[None, :]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    seen = earlier[None] & same & is_marked[:, None, :] & (segment_ids > 0)[:, :, None]
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, MASKED), axis=-1)
    weights = jnp.where(jnp.any(seen, axis=-1)[:, None, :, None], weights, 0).astype(v.dtype)
    return jnp.einsum("BSTU,BUH->BTSH", weights, v[:, :, 0])
