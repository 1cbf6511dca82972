"""Overlays: they stand in for a parameter while only some of its experts, or low-rank factors, are trained.

A model with overlays computes the same as the model whose parameters they replace. The trained part gets a gradient;
the rest gets none.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec, reshard

from maverick_jax.network import MatmulDtype
from maverick_jax.ops.dot import dot
from maverick_jax.ops.expert_rows import with_rows
from maverick_jax.ops.linear import gated_linear, linear
from maverick_jax.param import Overlay, stored, weight
from maverick_jax.parameters import Axes, Parameter
from maverick_jax.sharding import ShardingRules

# ---- some experts ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ExpertSubset(Overlay):
    """A parameter of routed experts, some of which are trained. In periods, each array has a leading axis L."""

    base: nnx.Param
    """[E, ...]: all experts, with their initial values."""
    rows: jax.Array
    """[S, ...]: the trained experts, sharded by `expert_axes`."""
    index: jax.Array
    """int32[S]: the trained experts' indices; E marks padding."""

    def stored(self, rules: ShardingRules, dtype) -> tuple[jax.Array, PartitionSpec]:
        axes = self.base.get_metadata("axes")
        rows = reshard(self.rows.astype(dtype), rules.compute(None, *expert_axes(axes)))
        return with_rows(weight(self.base, rules, dtype), rows, self.index), rules.compute(*axes)


jax.tree_util.register_dataclass(ExpertSubset)


def expert_axes(axes: Axes) -> Axes:
    """The logical axes of one expert's array, from the axes of the array of all experts. The devices of the expert axis
    share the expert's model dimension, so every device holds the same amount, whichever experts are chosen."""
    return tuple("embed" if axis == "expert_embed" else axis for axis in axes[1:])


# ---- low rank --------------------------------------------------------------------------------------------------------


class Factors(NamedTuple):
    """How an array of weights [experts?, *in, *out] splits into two factors, A [experts?, *in, r] and B [experts?, r,
    *out]."""

    batch: int
    """1 if each expert has its own factors, else 0."""
    inputs: int
    """Number of input axes `*in`."""

    @classmethod
    def of(cls, declared: Parameter) -> "Factors":
        return cls(int(declared.axes[0] == "experts"), declared.inputs)

    @property
    def middle(self) -> int:
        return self.batch + self.inputs

    def shapes(self, shape: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (*shape[: self.middle], rank), (*shape[: self.batch], rank, *shape[self.middle :])

    def axes(self, axes: Axes) -> tuple[Axes, Axes]:
        return (*axes[: self.middle], None), (*axes[: self.batch], None, *axes[self.middle :])

    def fan_in(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape[self.batch : self.middle])


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Sets a random share of an array to zero and scales up the rest (arXiv 1207.0580)."""

    key: jax.Array
    """uint32[2]: data of the random key. In periods, it has a leading axis L."""
    rate: float = dataclasses.field(metadata={"static": True})
    """The share that is set to zero, in (0, 1)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """x with dropout. Which elements are kept depends on the key and the shape, not on the mesh."""
        sharding = jax.typeof(x).sharding
        key = jax.random.wrap_key_data(self.key)
        kept = jax.random.bernoulli(key, 1 - self.rate, x.shape, out_sharding=sharding.spec)
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros_like(x))


jax.tree_util.register_dataclass(Dropout)


@dataclasses.dataclass(frozen=True)
class LowRank(Overlay):
    """W + scale A B in place of a parameter W, where A and B are trained. In periods, each array has a leading axis
    L."""

    base: nnx.Param
    a: jax.Array
    b: jax.Array
    factors: Factors = dataclasses.field(metadata={"static": True})
    scale: float = dataclasses.field(metadata={"static": True})
    dropout: Dropout | None = None
    """Of the inputs of A, while training; only `product` applies it."""

    def stored(self, rules: ShardingRules, dtype) -> tuple[jax.Array, PartitionSpec]:
        """The sum, computed on the stored shards."""
        batch = tuple(range(self.factors.batch))
        a, b = self.a.astype(dtype), self.b.astype(dtype)
        change = dot(a, b, (self.factors.middle,), (self.factors.batch,), (batch, batch))
        whole = self.base[...].astype(jnp.float32) + self.scale * change
        return whole.astype(dtype), rules.compute(*self.base.get_metadata("axes"))

    def product(self, x: jax.Array, rules: ShardingRules, out: PartitionSpec | None) -> jax.Array:
        """x [B, T, *in], with dropout, times scale A B -> [B, T, *out], without computing the matrix A B."""
        x = x if self.dropout is None else self.dropout(x)
        axes = self.factors.axes(self.base.get_metadata("axes"))
        of_a, of_b = (rules.compute(*names) for names in axes)
        low = linear(x, self.a, of_a, inputs=self.factors.inputs, out=rules("batch", "length", None))
        return linear(low * self.scale, self.b, of_b, out=out)


jax.tree_util.register_dataclass(LowRank)


def linear_of(
    x: jax.Array,
    parameter: nnx.Param | Overlay,
    rules: ShardingRules,
    matmul_dtype: MatmulDtype,
    *,
    inputs: int = 1,
    out=None,
) -> jax.Array:
    """`linear` with a parameter or its overlay. Products with low-rank factors are in the compute dtype."""
    if isinstance(parameter, LowRank):
        whole = linear_of(x, parameter.base, rules, matmul_dtype, inputs=inputs, out=out)
        return whole + parameter.product(x, rules, out)
    w = stored(parameter, rules, x.dtype)
    return linear(x, *w, inputs=inputs, out=out, float8=matmul_dtype == "float8")


def gated_linear_of(
    gate: jax.Array,
    up: jax.Array,
    parameter: nnx.Param | Overlay,
    rules: ShardingRules,
    matmul_dtype: MatmulDtype,
    *,
    out=None,
) -> jax.Array:
    """`gated_linear` with a parameter or its overlay, as `linear_of`."""
    if isinstance(parameter, LowRank):
        whole = gated_linear_of(gate, up, parameter.base, rules, matmul_dtype, out=out)
        return whole + parameter.product(jax.nn.silu(gate) * up, rules, out)
    w = stored(parameter, rules, gate.dtype)
    return gated_linear(gate, up, *w, out=out, float8=matmul_dtype == "float8")
