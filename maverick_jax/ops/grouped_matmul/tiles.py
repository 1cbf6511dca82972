"""The experts' SwiGLU by a loop over tiles of rows, on any platform.

Rows are sorted by expert into tiles of one height, and each expert's last tile is padded. A loop over the used tiles
multiplies each with its expert's weights, so the cost depends on the number of rows and not on the skew.

M rows, D model, F hidden, E experts, R tile height.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maverick_jax.ops.dot import dot
from maverick_jax.ops.kernels import Kernel
from maverick_jax.target import traced_platform


def tiled_swiglu(x, w_in, w_out, expert, *, tile: int | None = None) -> jax.Array:
    """Computes `grouped_swiglu` in tiles of `tile` rows; None: `tile_height`."""
    E, D, _, F = w_in.shape
    rows = tile or tile_height(x.shape[0], E)
    return _tiled_swiglu(rows, x, w_in.reshape(E, D, 2 * F), w_out, expert)


def tile_height(num_rows: int, num_experts: int) -> int:
    """Rows per tile: a quarter of an expert's even share, so that padding stays small, clipped to heights at which a
    matrix unit is fast (measured: docs/results/benchmarks.md)."""
    lowest, highest = (32, 256) if traced_platform() == "cpu" else (128, 512)
    share = max(1, num_rows // max(1, 4 * num_experts))
    return min(highest, max(lowest, 1 << (share.bit_length() - 1)))


class TilePlan(NamedTuple):
    """Where each row goes. P = padded rows = number of tiles x R."""

    row_of_slot: jax.Array  # int32[P], M for padding
    slot_of_row: jax.Array  # int32[M], P for rows without an expert
    expert_of_tile: jax.Array  # int32[P / R]
    num_used: jax.Array  # int32[], tiles that hold rows


def plan_tiles(expert: jax.Array, num_experts: int, rows: int) -> TilePlan:
    """Lays the rows out by expert in tiles of height `rows`. The number of tiles is the worst case, which is static."""
    M, E = expert.shape[0], num_experts
    num_tiles = -(-M // rows) + E
    padded = num_tiles * rows
    order = jnp.argsort(expert, stable=True).astype(jnp.int32)
    counts = jnp.sum(expert[:, None] == jnp.arange(E, dtype=expert.dtype)[None, :], axis=0, dtype=jnp.int32)
    tiles_of_expert = -(-counts // rows)
    last_tile = jnp.cumsum(tiles_of_expert)
    sorted_expert = expert[order]
    local = jnp.minimum(sorted_expert, E - 1)
    rank = jnp.arange(M, dtype=jnp.int32) - (jnp.cumsum(counts) - counts)[local]
    slot = (last_tile - tiles_of_expert)[local] * rows + rank
    slot = jnp.where(sorted_expert < E, slot, padded)
    slot_of_row = jnp.zeros_like(order).at[order].set(slot, unique_indices=True)
    row_of_slot = jnp.full_like(order, M, shape=padded).at[slot].set(order, mode="drop", unique_indices=True)
    expert_of_tile = jnp.searchsorted(last_tile, jnp.arange(num_tiles, dtype=jnp.int32), side="right")
    return TilePlan(row_of_slot, slot_of_row, jnp.minimum(expert_of_tile, E - 1).astype(jnp.int32), last_tile[-1])


def _take(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Rows of x; zeros for an index out of range."""
    return x.at[rows].get(mode="fill", fill_value=0)


def _tile(x: jax.Array, index: jax.Array, rows: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, index * rows, rows)


def _put(x: jax.Array, tile: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, tile, index * tile.shape[0], 0)


def _dot(x, w, contract=((1,), (0,))) -> jax.Array:
    """x @ w for 2-D operands (or the contraction `contract`), rounded once, to x's dtype."""
    return dot(x, w, *contract).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled_swiglu(rows, x, w_in, w_out, expert):
    return _forward(rows, x, w_in, w_out, expert)[0]


def _forward(rows, x, w_in, w_out, expert):
    tiles = plan_tiles(expert, w_in.shape[0], rows)
    padded = _take(x, tiles.row_of_slot)

    def body(i, out):
        e = tiles.expert_of_tile[i]
        gate, up = jnp.split(_dot(_tile(padded, i, rows), w_in[e]), 2, axis=-1)
        return _put(out, _dot(jax.nn.silu(gate) * up, w_out[e]), i)

    out = jax.lax.fori_loop(0, tiles.num_used, body, jnp.zeros_like(padded))
    return _take(out, tiles.slot_of_row), (padded, w_in, w_out, tiles)


def _backward(rows, saved, dy):
    padded, w_in, w_out, tiles = saved
    dy_padded = _take(dy, tiles.row_of_slot)

    def body(i, carry):
        dx, dw_in, dw_out = carry
        e = tiles.expert_of_tile[i]
        x, dy = _tile(padded, i, rows), _tile(dy_padded, i, rows)
        gate, up = jnp.split(_dot(x, w_in[e]), 2, axis=-1)
        act, act_vjp = jax.vjp(lambda gate, up: jax.nn.silu(gate) * up, gate, up)
        dhidden = jnp.concatenate(act_vjp(_dot(dy, w_out[e], ((1,), (1,)))), axis=-1)
        dw_in = dw_in.at[e].add(_dot(x, dhidden, ((0,), (0,))).astype(dw_in.dtype))
        dw_out = dw_out.at[e].add(_dot(act, dy, ((0,), (0,))).astype(dw_out.dtype))
        return _put(dx, _dot(dhidden, w_in[e], ((1,), (1,))), i), dw_in, dw_out

    # sums in float32 for weights of any dtype, since an expert with many rows adds up many tiles
    zeros = lambda w: jnp.zeros_like(w, dtype=jnp.float32)
    init = (jnp.zeros_like(padded), zeros(w_in), zeros(w_out))
    dx, dw_in, dw_out = jax.lax.fori_loop(0, tiles.num_used, body, init)
    return _take(dx, tiles.slot_of_row), dw_in.astype(w_in.dtype), dw_out.astype(w_out.dtype), None


_tiled_swiglu.defvjp(_forward, _backward)
TILES = Kernel("tiles", tiled_swiglu)
