"""What stands in a parameter's place while something smaller is trained: part of its experts.

A model with overlays computes what the model would whose parameters they stand for, and gradients reach what is trained
without ever being made for all of the parameter's layers.
"""

import dataclasses

import jax
from flax import nnx
from jax.sharding import reshard

from maverick_jax.ops.expert_rows import with_rows
from maverick_jax.param import Overlay, weight
from maverick_jax.sharding import ShardingRules


@dataclasses.dataclass(frozen=True)
class SomeExperts(Overlay):
    """A parameter of routed experts, some of which are trained. In a stack of periods, each has a leading axis L."""

    base: nnx.Param
    """[E, ...]: all experts, as they were."""
    rows: jax.Array
    """[S, ...]: those that are trained, split by `expert_axes`."""
    index: jax.Array
    """int32[S]: which ones; E for a row that is none."""

    def weight(self, rules: ShardingRules, dtype) -> jax.Array:
        axes = self.base.get_metadata("axes")
        rows = reshard(self.rows.astype(dtype), rules.compute(None, *expert_axes(axes)))
        return with_rows(weight(self.base, rules, dtype), rows, self.index)


jax.tree_util.register_dataclass(SomeExperts)


def expert_axes(axes: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """The logical axes of one expert by itself, from those of all of them. The devices that would each hold their own
    experts share its model dimension instead: every device has as much of it, whichever experts are chosen."""
    return tuple("embed" if axis == "expert_embed" else axis for axis in axes[1:])
