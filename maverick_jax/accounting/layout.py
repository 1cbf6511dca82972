"""How a train step is divided among devices, and one device's share of a parameter."""

import dataclasses
import math
from collections.abc import Iterable

from maverick_jax.ops.exchange import Capacity, capacity
from maverick_jax.parameters import Axes, Parameter
from maverick_jax.sharding import ShardingRules, size_of

BYTES = {"float32": 4, "bfloat16": 2, "int32": 4}
"""Bytes per element, by dtype."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a train step is divided among devices."""

    rules: ShardingRules
    sizes: dict[str, int]
    """Devices per mesh axis."""
    batch_size: int
    """Rows per optimizer step in the whole job."""
    sequence_length: int
    accumulation_steps: int = 1
    platform: str = "cpu"
    """`cpu`, `gpu` or `tpu`."""
    loss_chunk: int | None = None
    """Tokens per device whose logits exist at one time; None: the default of the loss."""

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def tokens(self) -> int:
        """Tokens on one device in one forward pass."""
        split = size_of(self.sizes, self.rules.batch) * size_of(self.sizes, self.rules.length)
        return math.ceil(self.batch_size * self.sequence_length / (self.accumulation_steps * split))

    @property
    def stream_axes(self) -> tuple[str, ...]:
        """Mesh axes that split the residual stream's positions between blocks, but not inside them."""
        return self.rules.within_blocks(self.sequence_length, self.sizes)

    @property
    def stream_ways(self) -> int:
        """Number of devices along `stream_axes`."""
        return size_of(self.sizes, self.stream_axes)

    def ways(self, logical: str) -> int:
        return size_of(self.sizes, getattr(self.rules, logical))

    def exchange(self, experts_per_token: int) -> Capacity | None:
        """How many rows devices exchange with each other in a layer of experts; None: each has all experts."""
        devices = self.ways("experts")
        return capacity(self.tokens * experts_per_token, devices, self.platform) if devices > 1 else None

    def parts(self, axes: Axes) -> int:
        """Number of shards in which a parameter of these logical axes is stored."""
        return math.prod(self.ways(axis) for axis in axes if axis)

    def gathered(self, axes: Axes) -> int:
        """Number of devices from which such a parameter is gathered before use; 1: it is used as stored."""
        return math.prod(self.ways(axis) for axis in axes if axis in self.rules.GATHERED)

    def stored(self, parameters: Iterable[Parameter]) -> int:
        """Elements of these parameters that one device stores."""
        return sum(p.size // self.parts(p.axes) for p in parameters)

    def used(self, parameters: Iterable[Parameter]) -> int:
        """Elements of these parameters on one device when they are used in matrix products."""
        return sum(p.size * self.gathered(p.axes) // self.parts(p.axes) for p in parameters)
