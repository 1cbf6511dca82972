"""Linear maps that gather their weight where devices share its storage, and send its gradient back to the shards.

The forward pass gathers the weight in the compute dtype, and the backward pass uses what it gathered. Each device
computes the weight's gradient of its own tokens with float32 sums. A reduce-scatter in the compute dtype adds up the
devices that share the storage; an all-reduce of the shards, in float32, adds up the replicas.

The gradient of a weight contracts over tokens, for which one operand must be transposed in memory. The transpose rule
of `jnp.einsum` transposes the cotangent even where it is wide; the functions here transpose the narrower operand
(measured on CPU: a third of a dense layer's time; elsewhere the compiler would choose the same).

With `float8`, the operands of all three products are rounded (`ops.float8`). What is gathered, saved as input and added
up over devices stays in the compute dtype.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, reshard

from maverick_jax.ops.collectives import reduce_scatter
from maverick_jax.ops.dot import dot
from maverick_jax.ops.float8 import COTANGENT, OPERAND, Scaled, scaled_dot, scaled_to
from maverick_jax.ops.stages import in_stage, shard_map
from maverick_jax.sharding import dimensions, spec_of


def linear(
    x: jax.Array,
    w: jax.Array,
    use: PartitionSpec | None = None,
    *,
    inputs: int = 1,
    out: PartitionSpec | None = None,
    float8: bool = False,
) -> jax.Array:
    """Contracts the last `inputs` axes of x [B, T, *in] with the first of w [*in, *out] -> [B, T, *out] in x's dtype.

    `use` is the spec of w in the product; None: that of w. `out` is the spec of the result. It is needed if the
    contracted axes are split over devices, which leaves the result's sharding ambiguous: it may be `unreduced` over
    them, and x may be `reduced` (see `ops.stream`). `float8`: operands are rounded to float8.
    """
    w = _placed(w, use)
    return _linear(_Weight.of(w, inputs, use, float8), out, x, w)


def gated_linear(
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    use: PartitionSpec | None = None,
    *,
    out: PartitionSpec | None = None,
    float8: bool = False,
) -> jax.Array:
    """(silu(gate) * up) down for gate, up [B, T, F] and down [F, D] -> [B, T, D]. Saves only its inputs, and the
    gathered `down`, for the backward pass. `out`, `use` and `float8` as in `linear`."""
    down = _placed(down, use)
    return _gated_linear(_Weight.of(down, 1, use, float8), out, gate, up, down)


def linear_reference(
    x: jax.Array, w: jax.Array, use: PartitionSpec | None = None, *, inputs: int = 1, out: PartitionSpec | None = None
) -> jax.Array:
    """The twin of `linear` whose gradients JAX derives. It sums gradients of the whole weight over devices."""
    w = w.astype(x.dtype)
    w = w if use is None else reshard(w, use)
    return _contract(x, w, range(x.ndim - inputs, x.ndim), range(inputs), x.dtype, out)


def gated_linear_reference(gate, up, down, use=None, *, out=None) -> jax.Array:
    """The twin of `gated_linear`, composed of differentiable parts."""
    return linear_reference(jax.nn.silu(gate) * up, down, use, out=out)


def _placed(w: jax.Array, use: PartitionSpec | None) -> jax.Array:
    """w on the mesh in use; an array that was made outside has no sharding."""
    return reshard(w, use) if use is not None and jax.typeof(w).sharding.mesh.empty else w


@dataclasses.dataclass(frozen=True)
class _Weight:
    """How a weight is stored and used."""

    inputs: int
    """Number of its input axes, which come first."""
    dtype: jnp.dtype
    """As stored."""
    stored: tuple[tuple[str, ...], ...] | None
    """Mesh axes of each dimension in storage. None: outside a mesh, or inside `shard_map`."""
    used: tuple[tuple[str, ...], ...] | None
    """Mesh axes of each dimension in the product."""
    of_stage: bool = False
    """Whether the product is part of a stage of a pipeline."""
    float8: bool = False
    """Whether operands are rounded to float8."""

    @classmethod
    def of(cls, w: jax.Array, inputs: int, use: PartitionSpec | None, float8: bool) -> "_Weight":
        kind = jax.typeof(w)
        mesh = kind.sharding.mesh
        if mesh.empty or not mesh.are_all_axes_explicit:
            return cls(inputs, w.dtype, None, None, float8=float8)
        stored = dimensions(kind.sharding.spec, w.ndim)
        return cls(inputs, w.dtype, stored, stored if use is None else dimensions(use, w.ndim), in_stage(), float8)

    def gather(self, w: jax.Array, dtype: jnp.dtype) -> "_Operand":
        """w for the product. The cast comes first, so that the gather sends values of the compute dtype."""
        w = w.astype(dtype)
        return self.operand(w if self.used is None else reshard(w, spec_of(self.used)))

    def operand(self, x: jax.Array) -> "_Operand":
        """x as an operand of the forward pass."""
        return scaled_to(x, OPERAND) if self.float8 else x

    def cotangent(self, dy: jax.Array) -> "_Operand":
        """dy as an operand of the backward pass."""
        return scaled_to(dy, COTANGENT) if self.float8 else dy

    def gradient(self, x: "_Operand", dy: "_Operand", dtype: jnp.dtype) -> jax.Array:
        """The gradient of w, as stored, from x [B, T, *in] and dy [B, T, *out]; summed over the tokens of a device and
        rounded to `dtype`."""
        product = functools.partial(_sum_over_tokens, inputs=self.inputs, dtype=dtype)
        if self.stored is None or self.used is None:
            return product(x, dy).astype(self.dtype)
        mesh = jax.sharding.get_abstract_mesh()
        splits = lambda axes: tuple(axis for axis in axes if mesh.shape[axis] > 1)
        tokens = [*map(splits, _split(x)[:2])]
        stored, used = ([*map(splits, whole)] for whole in (self.stored, self.used))
        summed = {axis for axes in tokens for axis in axes}
        scattered = [
            tuple(axis for axis in a if axis in summed and axis not in b) for a, b in zip(stored, used, strict=True)
        ]
        rest = tuple(sorted(summed.difference(*scattered)))

        def local(x, dy):
            dw = product(x, dy)
            for dimension, axes in enumerate(scattered):
                if axes:
                    dw = reduce_scatter(dw, axes, dimension)
            return (lax.psum(dw.astype(jnp.float32), rest) if rest else dw).astype(self.dtype)

        specs = spec_of([*tokens, *used[: self.inputs]]), spec_of([*tokens, *used[self.inputs :]])
        result = spec_of([a + b for a, b in zip(used, scattered, strict=True)])
        operands = tuple(_placed_operand(a, spec) for a, spec in zip((x, dy), specs, strict=True))
        in_specs = jax.tree.map(lambda a: jax.typeof(a).sharding.spec, operands)
        dw = shard_map(local, in_specs=in_specs, out_specs=result, of_stage=self.of_stage)(*operands)
        return reshard(dw, spec_of(self.stored))


_Operand = jax.Array | Scaled


def _values(x: _Operand) -> jax.Array:
    return x.values if isinstance(x, Scaled) else x


def _split(x: _Operand) -> tuple[tuple[str, ...], ...]:
    """The mesh axes of each dimension."""
    values = _values(x)
    return dimensions(jax.typeof(values).sharding.spec, values.ndim)


def _placed_operand(x: _Operand, spec: PartitionSpec) -> _Operand:
    return Scaled(reshard(x.values, spec), x.scale) if isinstance(x, Scaled) else reshard(x, spec)


def _contract(x: _Operand, w: _Operand, x_axes, w_axes, dtype, out: PartitionSpec | None = None) -> jax.Array:
    if out is not None and out.unreduced:
        split = _split(x)
        if {axis for dimension in x_axes for axis in split[dimension]} != out.unreduced:
            # devices that do not share the contraction all have the whole sum
            return reshard(_contract(x, w, x_axes, w_axes, dtype, PartitionSpec(*out.partitions)), out)
    if isinstance(x, Scaled) and isinstance(w, Scaled):
        return scaled_dot(x, w, x_axes, w_axes, out).astype(dtype)
    return dot(x, w, x_axes, w_axes, out=out).astype(dtype)


def _input_gradient(dy: _Operand, w: _Operand, inputs: int, like: jax.Array) -> jax.Array:
    axes = _values(w).ndim
    return _contract(dy, w, range(2, 2 + axes - inputs), range(inputs, axes), like.dtype, _cotangent_spec(like))


def _sum_over_tokens(x: _Operand, dy: _Operand, inputs: int, dtype) -> jax.Array:
    """[*in, *out]: x and dy contracted over their tokens, the narrower operand first."""
    if math.prod(_values(x).shape[2:]) <= math.prod(_values(dy).shape[2:]):
        return _contract(x, dy, (0, 1), (0, 1), dtype)
    outputs = _values(dy).ndim - 2
    order = (*range(outputs, outputs + inputs), *range(outputs))
    return _contract(dy, x, (0, 1), (0, 1), dtype).transpose(order)


def _cotangent_spec(x) -> PartitionSpec | None:
    sharding = jax.typeof(x).sharding
    if sharding.mesh.empty or not sharding.mesh.are_all_axes_explicit:
        return None
    return PartitionSpec(*sharding.spec.partitions, unreduced=sharding.spec.reduced)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear(weight: _Weight, out, x, w):
    return _linear_forward(weight, out, x, w)[0]


def _linear_forward(weight: _Weight, out, x, w):
    whole = weight.gather(w, x.dtype)
    axes = range(x.ndim - weight.inputs, x.ndim)
    return _contract(weight.operand(x), whole, axes, range(weight.inputs), x.dtype, out), (x, whole)


def _linear_backward(weight: _Weight, out, saved, dy):
    x, whole = saved
    cotangent = weight.cotangent(dy)
    dx = _input_gradient(cotangent, whole, weight.inputs, x)
    return dx, weight.gradient(weight.operand(x), cotangent, x.dtype)


_linear.defvjp(_linear_forward, _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gated_linear(weight: _Weight, out, gate, up, down):
    return _gated_linear_forward(weight, out, gate, up, down)[0]


def _gated_linear_forward(weight: _Weight, out, gate, up, down):
    whole = weight.gather(down, gate.dtype)
    act = weight.operand(jax.nn.silu(gate) * up)
    return _contract(act, whole, (2,), (0,), gate.dtype, out), (gate, up, whole)


def _gated_linear_backward(weight: _Weight, out, saved, dy):
    gate, up, whole = saved
    act, vjp = jax.vjp(lambda gate, up: jax.nn.silu(gate) * up, gate, up)
    cotangent = weight.cotangent(dy)
    dgate, dup = vjp(_input_gradient(cotangent, whole, 1, gate))
    return dgate, dup, weight.gradient(weight.operand(act), cotangent, gate.dtype)


_gated_linear.defvjp(_gated_linear_forward, _gated_linear_backward)
