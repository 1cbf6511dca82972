"""Marked tokens of texts in slots: where their keys are kept, and which of them a token sees.

Each layer with reasoning heads keeps the keys of a text's marked tokens in their order, up to the heads' capacity. How
many there are so far is known of every slot. P texts, T tokens of a piece, B slots, C kept keys, G groups of heads.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import reshard

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.ops.attention import Segments
from maverick_jax.ops.collectives import vary
from maverick_jax.ops.marked import attention_to_slots
from maverick_jax.sharding import ShardingRules, axes_tuple


@dataclasses.dataclass(frozen=True)
class KeptMarks:
    """Where the tokens of pieces stand among the marked tokens of their texts, for one group of heads."""

    place: jax.Array
    """int32[P, T]: the place of a marked token's key; C for others."""
    last: jax.Array
    """int32[P, T]: the last place that a token sees; -1 for none."""


jax.tree_util.register_dataclass(KeptMarks)


def num_groups(config: ModelConfig) -> int:
    """G: the groups of reasoning heads."""
    return len(config.reasoning_heads.groups) if config.reasoning_heads else 0


def counted(config: ModelConfig, marks: np.ndarray, position: int) -> np.ndarray:
    """int32[G]: how many of the first `position` tokens of a text each group of heads sees. `marks` uint8[n] are those
    of its first tokens; later ones have none."""
    groups = config.reasoning_heads.groups if config.reasoning_heads else ()
    return np.array([np.count_nonzero(marks[:position] == group.mark) for group in groups], np.int32)


def require_marks(config: ModelConfig, marks: np.ndarray | None, length: int) -> np.ndarray:
    """The marks uint8[length] of a prompt; zeros for None. Raises InputError for others than `length`, and for more
    than the model's heads have room for."""
    if marks is None:
        return np.zeros(length, np.uint8)
    if marks.shape != (length,) or marks.dtype != np.uint8:
        raise InputError(f"marks: {marks.dtype} of shape {marks.shape}; expected uint8 of ({length},), as the prompt")
    for group in config.reasoning_heads.groups if config.reasoning_heads else ():
        if (count := np.count_nonzero(marks == group.mark)) > group.tokens:
            raise InputError(
                f"marks: {count:,} tokens of the prompt are for {group.name} heads; expected at most {group.tokens:,}, "
                f"the model's reasoning_heads.{group.name}_tokens"
            )
    return marks


def of_pieces(
    config: ModelConfig, marks: jax.Array | None, seen: jax.Array, real: jax.Array
) -> tuple[dict[str, KeptMarks], jax.Array]:
    """By group of heads where the tokens of pieces stand, and how many tokens each sees after them, int32[P, G].
    `marks` uint8[P, T]; None: no token is marked. `seen` int32[P, G]: before the pieces. `real` bool[P, T]."""
    found, after = {}, []
    for i, group in enumerate(config.reasoning_heads.groups if config.reasoning_heads else ()):
        is_marked = jnp.zeros_like(real) if marks is None else (marks == group.mark) & real
        count = seen[:, i : i + 1] + jnp.cumsum(is_marked, axis=1, dtype=jnp.int32)
        place = jnp.where(is_marked, jnp.minimum(count - 1, group.tokens), group.tokens)
        found[group.name] = KeptMarks(place, jnp.minimum(count, group.tokens) - 1)
        after.append(count[:, -1])
    return found, jnp.stack(after, axis=1) if after else seen


def attend_kept(q, k, v, where: KeptMarks, slot: jax.Array | None, keys, values, rules: ShardingRules):
    """Attention of pieces q [P,T,S,H] to the marked tokens of their texts, [P,T,S,H], zeros where there are none; and
    the kept keys and values [B,1,C,H] with the pieces' own. `slot` as of `PromptPieces`."""
    heads, rows = rules("batch", None, "heads", None), rules("batch", None, None, None)
    token, kept = rules("batch", None), rules("batch", None, None, None)
    given = () if slot is None else (reshard(slot, rules("batch")),)
    varying = axes_tuple(rules.heads)

    def local(q, k, v, where, keys, values, *own_slot):
        slots = own_slot[0] if own_slot else jnp.arange(keys.shape[0])
        put = lambda x, new: x.at[slots[:, None], :, where.place].set(new, mode="drop")
        own = lambda x: jax.lax.dynamic_slice_in_dim(x, slots[0], 1, axis=0) if own_slot else x
        keys, values = put(keys, k), put(values, v)
        seen = lambda x: vary(own(x).transpose(0, 2, 1, 3), varying)
        last = vary(where.last, varying)
        places = jnp.broadcast_to(jnp.arange(keys.shape[2], dtype=jnp.int32), (last.shape[0], keys.shape[2]))
        queries, at = Segments(last, jnp.ones_like(last)), Segments(places, jnp.ones_like(places))
        return attention_to_slots(q, seen(keys), seen(values), queries, last >= 0, at), keys, values

    arrays = (reshard(q, heads), reshard(k, rows), reshard(v, rows), jax.tree.map(lambda x: reshard(x, token), where))
    specs = (heads, rows, rows, KeptMarks(token, token), kept, kept, *(rules("batch") for _ in given))
    return jax.shard_map(local, in_specs=specs, out_specs=(heads, kept, kept))(*arrays, keys, values, *given)
