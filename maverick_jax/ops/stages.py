"""`shard_map` for code that also runs as one stage of a pipeline.

All stages are one program: `over_stages` maps it over arrays whose leading axis has one entry per stage, on the devices
of that stage. JAX's own rule for `shard_map` under `vmap` would give each device the entries of all stages. Ours splits
them over the pipeline axis, and the local function sees its own stage as if there were no others: loops whose length
the data decide, kernels and collectives stay what they are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, reshard

from maverick_jax.ops.collectives import vary
from maverick_jax.sharding import PIPELINE_AXIS

_STAGE = "stage"
"""The name of the mapped axis, by which code knows that it runs as a stage."""


def num_stages() -> int:
    """Stages of the pipeline on the mesh in use."""
    return jax.sharding.get_abstract_mesh().shape.get(PIPELINE_AXIS, 1)


def over_stages(f: Callable[..., Any]) -> Callable[..., Any]:
    """f of the arrays of a stage, mapped over arrays [stages, ...] whose first axis is split over the pipeline."""
    return jax.vmap(f, axis_name=_STAGE)


def with_stages(spec: PartitionSpec) -> PartitionSpec:
    """The spec of arrays [stages, ...] whose entries have this spec."""
    return PartitionSpec(PIPELINE_AXIS, *spec.partitions, unreduced=spec.unreduced, reduced=spec.reduced)


def shard_map(
    local: Callable[..., Any], *, in_specs: Any, out_specs: Any, of_stage: bool | None = None
) -> Callable[..., Any]:
    """`jax.shard_map` over the mesh in use, also inside `over_stages`.

    `of_stage`: what `in_stage` said where a function with a derivative of its own was called, because JAX may trace the
    derivative elsewhere. None: what it says here."""
    if not (in_stage() if of_stage is None else of_stage):
        return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs)
    mapped = jax.custom_batching.custom_vmap(lambda *arrays: _like_result(local, in_specs, out_specs, arrays))

    @mapped.def_vmap
    def _(size: int, stacked: list, *arrays):
        leaves, tree = jax.tree.flatten(arrays)
        flags = jax.tree.leaves(stacked)
        specs = jax.tree.leaves(in_specs, is_leaf=_is_spec)
        specs = [with_stages(spec) if flag else spec for spec, flag in zip(specs, flags, strict=True)]

        def own(*leaves):
            here = [vary(x, (PIPELINE_AXIS,)) for x in leaves]
            here = [x[0] if flag else x for x, flag in zip(here, flags, strict=True)]
            return jax.tree.map(lambda x: x[None], local(*tree.unflatten(here)))

        of_stages = jax.tree.map(with_stages, out_specs, is_leaf=_is_spec)
        out = jax.shard_map(own, in_specs=tuple(specs), out_specs=of_stages)(*leaves)
        return out, jax.tree.map(lambda _: True, out)

    return mapped


def in_stage() -> bool:
    """Whether this is traced inside `over_stages`."""
    try:
        lax.axis_size(_STAGE)
    except NameError:
        return False
    return True


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def _like_result(local, in_specs, out_specs, arrays) -> Any:
    """Zeros of the types that `shard_map` of `local` has for one stage; `vmap` asks only for the types.

    `jax.shard_map` counts out the mapped axis and then refuses sums that are still to be added up, so it is shown the
    mesh under another name for that axis."""
    mesh = jax.sharding.get_abstract_mesh()
    names = tuple(f"{name}s" if name == PIPELINE_AXIS else name for name in mesh.axis_names)
    renamed = AbstractMesh(mesh.axis_sizes, names, mesh.axis_types, abstract_device=mesh.abstract_device)
    where = lambda x: NamedSharding(renamed, jax.typeof(x).sharding.spec)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x)), arrays)
    with jax.sharding.use_abstract_mesh(renamed):
        found = jax.eval_shape(jax.shard_map(local, in_specs=in_specs, out_specs=out_specs), *like)

    def zeros(x):
        spec = x.sharding.spec
        whole = jnp.zeros(x.shape, x.dtype, out_sharding=PartitionSpec(*spec.partitions))
        return reshard(whole, spec) if spec.unreduced or spec.reduced else whole

    return jax.tree.map(zeros, found)
