"""Muon for hidden matrices, AdamW for everything else.

Muon (K. Jordan and others, https://kellerjordan.github.io/posts/muon, 2024) replaces the momentum of a matrix by the
nearest orthogonal matrix, computed with a few Newton-Schulz steps. An update is scaled by 0.2 sqrt(max(inputs,
outputs)), so that its root mean square is about AdamW's and both share one learning rate and decay (arXiv 2502.16982).

The Newton-Schulz steps are Optax's. This file adds the parts that a sharded model needs: it finds the input and output
axes of a parameter's matrices, and divides the matrices among the devices that hold shards of them.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers as Matrix
from pydantic import Field

from maverick_jax.accounting.communication import Transfer
from maverick_jax.accounting.devices import spans
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.network import Dtype
from maverick_jax.ops.matrix_shares import MatrixShares
from maverick_jax.parameters import Parameter, Role
from maverick_jax.sharding import axes_tuple, dimensions, size_of, spec_of
from train.optimizers.adamw import AdamFields
from train.optimizers.base import OPTIMIZERS

RMS = 0.2
"""Root mean square of an update before the learning rate, about AdamW's (arXiv 2502.16982, section 2.2)."""

HIDDEN: tuple[Role, ...] = ("attention", "shared", "experts", "mlp", "reasoning")
"""Roles whose weights are hidden matrices."""


def matrix_of(parameter: Parameter) -> Matrix | None:
    """Axes of the hidden matrices in a parameter; None for all others: embedding, head, router, norms, image encoder.

    Axes are counted from the last, so they do not depend on leading axes that stack layers or chosen experts.
    """
    if parameter.role not in HIDDEN or len(parameter.shape) < 2:
        return None
    first = int(parameter.axes[0] == "experts")
    middle, count = first + parameter.inputs, len(parameter.shape)
    pair = parameter.axes[middle] is None and middle + 1 < count  # [D, 2, F]: gate and up are two matrices
    return Matrix(tuple(range(first - count, middle - count)), tuple(range(middle + pair - count, 0)))


@OPTIMIZERS.register
class Muon(AdamFields):
    """Muon for hidden matrices, with one moment; AdamW, by `b1`, `b2` and `eps`, for all other parameters."""

    kind: Literal["muon"] = "muon"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the momentum of hidden matrices, which is stored in `mu_dtype`."""
    newton_schulz_steps: Annotated[int, Field(ge=1, le=20)] = 5
    """Steps of the iteration that orthogonalizes a matrix."""

    def direction(self, declared: Mapping[str, Parameter]) -> optax.GradientTransformation:
        hidden = {name: p for name, p in declared.items() if matrix_of(p) is not None}
        muon = scale_by_muon(hidden, self.momentum, self.newton_schulz_steps, self.mu_dtype)
        labels = lambda trained: {name: "muon" if name in hidden else "adam" for name in trained}
        return optax.partition({"muon": muon, "adam": self.adam()}, labels)

    def width_factor(self, parameter: Parameter, model: ModelConfig) -> float:
        """The root of Adam's factor: an orthogonal matrix moves its outputs by the root of its width times the size of
        its elements, where Adam's update, which is of low rank, moves them by its width."""
        factor = super().width_factor(parameter, model)
        return factor if matrix_of(parameter) is None else math.sqrt(factor)

    def moment_bytes(self, parameter: Parameter | None) -> int:
        if parameter is None or matrix_of(parameter) is None:
            return super().moment_bytes(parameter)
        return BYTES[self.mu_dtype]

    def update_flops(self, parameter: Parameter, layout: Layout) -> float:
        """Three products for each step of the iteration, on a device's share of the matrices."""
        if (matrix := matrix_of(parameter)) is None:
            return 0.0
        sides = (math.prod(parameter.shape[axis] for axis in axes) for axes in matrix)  # pyright: ignore
        small, large = sorted(sides)
        _, _, whole = _shares(parameter, matrix, layout)
        return whole * self.newton_schulz_steps * (4.0 * small**2 * large + 2.0 * small**3)

    def transfers(self, parameter: Parameter, layout: Layout) -> list[Transfer]:
        """Two all-to-alls in float32: shards become a device's share of the matrices, and come back."""
        if (matrix := matrix_of(parameter)) is None:
            return []
        inside, group, whole = _shares(parameter, matrix, layout)
        ways = size_of(layout.sizes, group)
        sent = (ways - 1) * whole * (inside // ways) * BYTES["float32"]
        return [Transfer("all_to_all", spans(group, layout.sizes), 2 * sent, 2)] if sent else []


def _shares(parameter: Parameter, matrix: Matrix, layout: Layout) -> tuple[int, tuple[str, ...], int]:
    """(Elements of a matrix, mesh axes that share its storage, matrices that a device works on)."""
    inside = [axis for axes in matrix for axis in axes]  # pyright: ignore
    size = math.prod(parameter.shape[axis] for axis in inside)
    stored = [axes_tuple(getattr(layout.rules, name)) for axis in inside if (name := parameter.axes[axis])]
    group = tuple(a for axes in stored for a in axes if layout.sizes.get(a, 1) > 1)
    ways = size_of(layout.sizes, group)
    return size, group, -(-(layout.held(parameter) * ways // size) // ways)


class MuonState(NamedTuple):
    """`count`: int32[], updates done; `mu`: the momentum, by parameter name."""

    count: jax.Array
    mu: optax.Updates


def scale_by_muon(
    hidden: Mapping[str, Parameter], momentum: float, steps: int, mu_dtype: Dtype
) -> optax.GradientTransformation:
    """Muon's direction for a dict of arrays; `hidden` declares their parameters by name. It is the bias-corrected
    Nesterov momentum, orthogonalized and scaled to a root mean square of about `RMS`."""

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=mu_dtype), params)
        return MuonState(jnp.zeros((), jnp.int32), zeros)

    def update(updates, state, params=None):
        count = optax.safe_increment(state.count)
        done = count.astype(jnp.float32)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
        mean = lambda old, new: momentum * old + (1 - momentum) * new
        mu = jax.tree.map(lambda m, g: mean(m.astype(jnp.float32), g), state.mu, grads)
        ahead = lambda m, g: mean(m / (1 - momentum ** (done + 1)), g / (1 - momentum**done))

        def direction(path, m, g):
            return orthogonalized(ahead(m, g), hidden[path[-1].key], steps)

        directions = jax.tree_util.tree_map_with_path(direction, mu, grads)
        return directions, MuonState(count, jax.tree.map(lambda m: m.astype(mu_dtype), mu))

    return optax.GradientTransformation(init, update)


def orthogonalized(x: jax.Array, parameter: Parameter, steps: int) -> jax.Array:
    """The array `x` (float32, sharded like the hidden `parameter`) with every matrix orthogonalized and scaled.

    The devices that share the storage of some matrices take turns: by one all-to-all, each gets its share of them
    whole, and by another it sends them back. It works on one matrix at a time. Experts stay on their devices.
    """
    matrix = matrix_of(parameter)
    assert matrix is not None, parameter.name
    inside = [axis % x.ndim for axes in matrix for axis in axes]  # pyright: ignore
    order = [axis for axis in range(x.ndim) if axis not in inside] + inside
    inputs, outputs = (math.prod(x.shape[axis] for axis in axes) for axes in matrix)  # pyright: ignore
    stored = dimensions(jax.typeof(x).sharding.spec, x.ndim)
    scale = RMS * math.sqrt(max(inputs, outputs))

    def local(x: jax.Array) -> jax.Array:
        shards = x.transpose(order)
        shares = MatrixShares(tuple(stored[axis] for axis in inside), shards.shape[-len(inside) :])
        flat = shards.reshape(-1, *shares.shape)
        whole = shares.collect(flat)
        one = lambda matrix: scale * _newton_schulz(matrix, steps)
        found = jax.lax.map(one, whole.reshape(-1, inputs, outputs)).reshape(whole.shape)
        found = shares.distribute(found, len(flat)).reshape(shards.shape)
        return found.transpose([order.index(axis) for axis in range(x.ndim)])

    spec = spec_of(stored)
    return jax.shard_map(local, in_specs=spec, out_specs=spec)(x)


def _newton_schulz(matrix: jax.Array, steps: int) -> jax.Array:
    """The iteration alone, which is Optax's Muon without momentum."""
    matrix = jax.lax.optimization_barrier(matrix)  # XLA's GPU compiler cannot tile a product fused with its reshape
    iteration: Any = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, ns_steps=steps)
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes integers and floats
        return iteration.update(matrix, iteration.init(matrix))[0]
