"""The experts' SwiGLU from three products of rows that are sorted by expert: the structure that kernels share.

Gate and up are one product, and the activation is between the products. Each expert's weight gradients are summed
inside a product and rounded once.

P rows after padding, D model, F hidden, E experts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maverick_jax.ops.collectives import unchecked, vary


@dataclasses.dataclass(frozen=True)
class Products:
    """Products of sorted rows, of which `sizes` int32[E] belong to each expert. Rows after the last expert's are not
    computed: they may hold anything, NaN included, in results, and must not be NaN in what `weights` takes."""

    forward: Callable[..., jax.Array]
    """x [P, K], w [E, K, N], sizes -> [P, N]: each row times its expert's weights."""
    backward: Callable[..., jax.Array]
    """y [P, N], w [E, K, N], sizes -> [P, K]: each row times the transpose of its expert's weights."""
    weights: Callable[..., jax.Array]
    """x [P, K], y [P, N], sizes -> [E, K, N]: for each expert, the sum of the outer products of its rows."""
    block: Callable[[int], int]
    """A number of rows -> that of which P is a multiple."""

    def run(self, x, w_in, w_out, expert) -> jax.Array:
        """Computes `grouped_swiglu`."""
        E, D, _, F = w_in.shape
        args = x, w_in.reshape(E, D, 2 * F), w_out, expert
        axes = frozenset().union(*(jax.typeof(a).mat.varying for a in args))
        return _swiglu(self, *(vary(a, axes) for a in args))


class RowOrder(NamedTuple):
    """Rows sorted by expert, those without an expert here last, then padding."""

    row_of_slot: jax.Array  # int32[P], M for padding
    slot_of_row: jax.Array  # int32[M], P for rows without an expert here
    sizes: jax.Array  # int32[E]

    @classmethod
    def of(cls, expert: jax.Array, num_experts: int, block: int) -> "RowOrder":
        """Of rows for the experts int32[M], with P a multiple of `block`."""
        rows = jnp.arange(len(expert), dtype=jnp.int32)
        experts = jnp.arange(num_experts, dtype=expert.dtype)
        order = jnp.argsort(expert, stable=True).astype(jnp.int32)
        slots = jnp.zeros_like(order).at[order].set(rows, unique_indices=True)
        padding = -len(expert) % block
        return cls(
            row_of_slot=jnp.pad(order, (0, padding), constant_values=len(expert)),
            slot_of_row=jnp.where(expert < num_experts, slots, len(expert) + padding),
            sizes=jnp.sum(expert[:, None] == experts[None, :], axis=0, dtype=jnp.int32),
        )

    def computed(self, x: jax.Array) -> jax.Array:
        """x [P, ...] with zeros in the rows that belong to no expert here."""
        slots = jnp.arange(len(self.row_of_slot), dtype=jnp.int32)
        return jnp.where((slots < jnp.sum(self.sizes, dtype=jnp.int32))[:, None], x, 0)


def _take(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Rows of x; zeros for an index out of range."""
    return x.at[rows].get(mode="fill", fill_value=0)


def _call(product: Callable[..., jax.Array], *args) -> jax.Array:
    """A kernel, whose result varies as its arguments do, all of which vary alike."""
    with unchecked():
        found = product(*args)
    return vary(found, jax.typeof(args[0]).mat.varying)


def _activation(hidden: jax.Array) -> jax.Array:
    gate, up = jnp.split(hidden, 2, axis=-1)
    return jax.nn.silu(gate) * up


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _swiglu(products: Products, x, w_in, w_out, expert):
    return _forward(products, x, w_in, w_out, expert)[0]


def _forward(products: Products, x, w_in, w_out, expert):
    order = RowOrder.of(expert, w_in.shape[0], products.block(len(expert)))
    rows = _take(x, order.row_of_slot)
    hidden = _call(products.forward, rows, w_in, order.sizes)
    out = _call(products.forward, _activation(hidden), w_out, order.sizes)
    return _take(out, order.slot_of_row), (rows, hidden, w_in, w_out, order)


def _backward(products: Products, saved, dy):
    rows, hidden, w_in, w_out, order = saved
    dy = _take(dy, order.row_of_slot)
    act, act_vjp = jax.vjp(_activation, hidden)
    (dhidden,) = act_vjp(_call(products.backward, dy, w_out, order.sizes))
    act, dhidden = order.computed(act), order.computed(dhidden)
    dw_in = _call(products.weights, rows, dhidden, order.sizes)
    dw_out = _call(products.weights, act, dy, order.sizes)
    dx = _call(products.backward, dhidden, w_in, order.sizes)
    return _take(dx, order.slot_of_row), dw_in, dw_out, None


_swiglu.defvjp(_forward, _backward)
