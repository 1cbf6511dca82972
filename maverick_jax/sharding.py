"""The device mesh, and the table that maps logical axes to mesh axes.

This is the only file that names mesh axes. Every mesh axis is Explicit, so arrays carry their sharding in their type,
and gradients, optimizer moments and restore targets have the shardings of their parameters.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pydantic
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec
from pydantic import Field

from maverick_jax.errors import InputError
from maverick_jax.settings.section import Section, did_you_mean
from maverick_jax.target import Target

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor", "pipeline")
BATCH_AXES = ("data", "fsdp", "expert")
DATA_AXIS, FSDP_AXIS, TENSOR_AXIS, PIPELINE_AXIS = "data", "fsdp", "tensor", "pipeline"

Axes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Logical axis -> mesh axes. Parameters are stored with the spec of `storage` and used with the spec of `compute`:
    an axis in `GATHERED` is sharded in storage and gathered for use (fully sharded data parallelism)."""

    batch: Axes = BATCH_AXES
    """Sequences of a batch."""
    length: Axes = "context"
    """Places of a sequence, divided as `RowSplit` says."""
    stream: Axes = ("context", "tensor")
    """Positions of a sequence between blocks, in the residual stream: those of `length` and more. Blocks gather their
    input's positions over the others and scatter their output (arXiv 2205.05198); norms and router work in between.
    null: those of `length`."""
    residual: Axes = None
    """Model dimension of activations."""
    vocab: Axes = "tensor"
    heads: Axes = "tensor"
    kv_heads: Axes = "tensor"
    mlp: Axes = "tensor"
    """Hidden dimension of dense layers and of the shared expert."""
    experts: Axes = "expert"
    expert_mlp: Axes = "tensor"
    embed: Axes = ("fsdp", "expert", "context")
    """Model dimension of every parameter outside the routed experts."""
    expert_embed: Axes = ("fsdp", "context")
    """Model dimension of the routed experts' parameters."""
    vision_embed: Axes = ("fsdp", "expert", "context")
    """Model dimension of the image encoder's parameters; its heads and hidden dimensions use the text model's axes."""
    table: Axes = ("fsdp", "expert", "tensor", "context")
    """Model dimension of the embedding table. Its rows are not sharded, so a lookup needs no communication. The axes of
    the sequence come last, for they are the first over which columns are exchanged."""

    microbatches: int | None = None
    """`MeshConfig.microbatches`; no logical axis."""

    GATHERED = frozenset({"embed", "expert_embed", "vision_embed"})

    @property
    def tokens(self) -> tuple[str, ...]:
        """Mesh axes over which the tokens of a batch are split."""
        return axes_tuple(self.batch) + axes_tuple(self.length)

    def storage(self, *axes: str | None) -> PartitionSpec:
        """Spec of a stored parameter or of an activation, from one logical axis (or None) per dimension."""
        return PartitionSpec(*[getattr(self, name) if name else None for name in axes])

    __call__ = storage

    def compute(self, *axes: str | None) -> PartitionSpec:
        """Spec of a parameter while it is used: the axes in `GATHERED` are not sharded."""
        return self.storage(*[None if name in self.GATHERED else name for name in axes])

    def within_blocks(self, length: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
        """The mesh axes that split the residual stream of `length` positions and that blocks gather over: those of
        `stream` besides `length`. None if they do not split it evenly, as for one token that is decoded."""
        even = length % size_of(sizes, self.stream) == 0
        axes = axes_tuple(self.stream) if even else ()
        return tuple(axis for axis in axes if axis not in axes_tuple(self.length) and sizes.get(axis, 1) > 1)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in dataclasses.fields(cls) if f.name != "microbatches")


class MeshConfig(Section):
    """Number of devices along each mesh axis; -1 means all remaining devices."""

    data: Annotated[int, Field(ge=-1)] = -1
    """Replicas of the model; the only axis that should cross slow links."""
    fsdp: Annotated[int, Field(ge=-1)] = 1
    """Shards parameters, gradients, optimizer moments and the batch."""
    expert: Annotated[int, Field(ge=-1)] = 1
    """Shards the experts and the batch; tokens are exchanged by all-to-all."""
    context: Annotated[int, Field(ge=-1)] = 1
    """Shards the sequence, and parameters, gradients and optimizer moments: devices exchange keys and values in layers
    without rotary embedding. `data.sequence_length` must be a multiple of twice its size times
    `model.attention_chunk_size`, and `data.cell` set."""
    tensor: Annotated[int, Field(ge=-1)] = 1
    """Shards heads, hidden dimensions, the vocabulary, and between blocks the sequence."""
    pipeline: Annotated[int, Field(ge=-1)] = 1
    """Stages: shards the periods of layers."""
    microbatches: Annotated[int, Field(ge=1)] | None = None
    """Parts of a device's rows that pass through the stages one after the other. null: one per row, for the smallest
    bubble; each part gathers the weights again."""
    rules: dict[str, str | list[str] | None] = {}
    """Overrides of the sharding table: logical axis -> mesh axis, list of mesh axes, or null."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        sizes = self.sizes
        if sum(s == -1 for s in sizes.values()) > 1:
            default = (
                "" if "data" in self.model_fields_set or self.data != -1 else "; data is -1 by default: set data: 1"
            )
            raise ValueError(f"at most one axis may be -1 (all remaining devices){default}")
        for axis, size in sizes.items():
            if size == 0:
                raise ValueError(f"{axis}: 0 devices; expected a positive size, or -1 for all remaining devices")
        if self.microbatches is not None and self.pipeline == 1:
            raise ValueError(f"microbatches: {self.microbatches} needs stages to pass through; set pipeline above 1")
        self.sharding_rules()
        return self

    @property
    def sizes(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    def sharding_rules(self) -> ShardingRules:
        """The table with the overrides of `rules`. Raises ValueError for unknown axes."""
        changes: dict[str, Any] = {}
        for name, axes in self.rules.items():
            if name not in ShardingRules.names():
                raise ValueError(f"rules.{name}: no such logical axis{did_you_mean(name, ShardingRules.names())}")
            listed = [axes] if isinstance(axes, str) else list(axes or ())
            for axis in listed:
                if axis not in MESH_AXES:
                    raise ValueError(f"rules.{name}: no mesh axis {axis!r}{did_you_mean(axis, MESH_AXES)}")
            changes[name] = axes if isinstance(axes, str) or axes is None else tuple(axes)
        return _agreeing(dataclasses.replace(ShardingRules(), **changes, microbatches=self.microbatches))

    def resolve(self, num_devices: int) -> dict[str, int]:
        """Axis sizes for `num_devices` devices. Raises InputError if their product cannot be `num_devices`."""
        sizes = self.sizes
        known = math.prod(s for s in sizes.values() if s != -1)
        rest = [axis for axis, s in sizes.items() if s == -1]
        if num_devices % known or (not rest and known != num_devices):
            listed = ", ".join(f"{axis}={s}" for axis, s in sizes.items() if s != 1)
            raise InputError(
                f"mesh: {listed or 'all axes 1'} needs {'a multiple of ' if rest else ''}{known} "
                f"devices; this job has {num_devices}. {_advice(sizes, known, num_devices)}"
            )
        return sizes | {axis: num_devices // known for axis in rest}


def _agreeing(rules: ShardingRules) -> ShardingRules:
    """The rules themselves. Raises ValueError if those of the residual stream contradict each other."""
    length, stream = axes_tuple(rules.length), axes_tuple(rules.stream) or axes_tuple(rules.length)
    if stream[: len(length)] != length:
        listed = list(length)
        raise ValueError(f"rules.stream: {list(stream)} does not begin with the axes of rules.length, {listed}; it "
                         f"splits the same positions further. Expected {listed} or more")  # fmt: skip
    for name in ("batch", "residual"):
        if twice := [axis for axis in axes_tuple(getattr(rules, name)) if axis in stream]:
            rest = [axis for axis in stream if axis not in twice]
            also = "rules.length: null and " if twice[0] in length else ""
            raise ValueError(f"rules.{name}: mesh axis {twice[0]!r} also splits the positions of the residual stream; "
                             f"expected other axes, or {also}rules.stream: {rest}")  # fmt: skip
    return rules


def _advice(sizes: dict[str, int], known: int, num_devices: int) -> str:
    """What to do about axes of `known` devices in a job that has another number."""
    largest = max(sizes, key=lambda axis: sizes[axis])
    others = known // sizes[largest]
    fits = f"mesh.{largest}={num_devices // others} fits" if num_devices % others == 0 else "use smaller axes"
    simulated = f"on a CPU, JAX_NUM_CPU_DEVICES={known} simulates them"
    return fits + ("" if num_devices >= known else f", or start the job on {known} devices ({simulated})")


def make_mesh(sizes: "dict[str, int] | MeshConfig | None" = None, devices=None) -> Mesh:
    """The mesh of a run: the axes of `MESH_AXES` in this order, all Explicit; an axis that a dict lacks has size 1, and
    None is `MeshConfig()`, all devices along `data`. devices: default all of the job.
    Raises InputError for an unknown axis, and if the sizes do not multiply to the number of devices."""
    devices = Target.local().devices if devices is None else devices
    sizes = MeshConfig() if sizes is None else sizes
    config = sizes if isinstance(sizes, MeshConfig) else _mesh_config(sizes)
    sizes = config.resolve(len(devices))
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    return Mesh(arrange(shape, devices), MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))


def arrange(shape: tuple[int, ...], devices: Sequence) -> np.ndarray:
    """The devices as an array of this shape, neighbors of the last axes close together: on GPUs and CPUs in the order
    of their hosts, on a TPU slice along its links. Between TPU slices run the first axes that they divide into.

    Raises InputError if the number of slices does not divide into the axes."""
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})  # devices of one slice may lack it
    across = _across(slices, shape)
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    within = [size // n for size, n in zip(shape, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def _across(slices: int, shape: tuple[int, ...]) -> list[int]:
    """How many slices each axis runs over: as many as divide it, from the first axis on."""
    rest, across = slices, []
    for size in shape:
        across.append(math.gcd(rest, size))
        rest //= across[-1]
    if rest > 1:
        raise InputError(
            f"mesh: {slices} slices do not divide into its axes {shape}; make mesh.data a multiple of them"
        )
    return across


def _mesh_config(sizes: dict[str, int]) -> MeshConfig:
    for axis in sizes:
        if axis not in MESH_AXES:
            raise InputError(f"mesh: no axis {axis!r}{did_you_mean(axis, MESH_AXES)} (axes: {', '.join(MESH_AXES)})")
    try:
        return MeshConfig(**({"data": 1} | sizes))
    except pydantic.ValidationError as error:
        raise InputError(f"mesh: {error.errors()[0]['msg']}") from None


def single_device_mesh(device=None) -> Mesh:
    return make_mesh({}, [device] if device else Target.one_device().devices)


def abstract_mesh(sizes: dict[str, int]) -> AbstractMesh:
    """A mesh without devices, for shapes and specs only."""
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))


def axes_tuple(axes: Axes) -> tuple[str, ...]:
    """The mesh axes of an entry of the table, as a tuple."""
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def dimensions(spec: PartitionSpec, ndim: int) -> tuple[tuple[str, ...], ...]:
    """The mesh axes of each of `ndim` dimensions."""
    return tuple(axes_tuple(entry) for entry in (*spec.partitions, *(None,) * (ndim - len(spec.partitions))))


def spec_of(dimensions: Sequence[tuple[str, ...]]) -> PartitionSpec:
    """The spec of dimensions that are split over these mesh axes each."""
    return PartitionSpec(*(axes or None for axes in dimensions))


def size_of(sizes: Mapping[str, int], axes: Axes) -> int:
    """Number of shards into which `axes` divide a dimension."""
    return math.prod(sizes.get(axis, 1) for axis in axes_tuple(axes))
