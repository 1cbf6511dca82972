"""How a train step is divided among devices, and one device's share of a parameter."""

import dataclasses
import math
from collections.abc import Iterable

from maverick_jax.config import ModelConfig
from maverick_jax.ops.exchange import Capacity, capacity, limited_capacity
from maverick_jax.ops.pipeline import num_turns
from maverick_jax.parameters import Axes, Parameter
from maverick_jax.sharding import PIPELINE_AXIS, ShardingRules, size_of
from maverick_jax.stack import Stack

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
    tiles: int = 0
    """Tiles of pictures for which each row has room."""

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def tokens(self) -> int:
        """Tokens on one device in one forward pass."""
        split = size_of(self.sizes, self.rules.batch) * size_of(self.sizes, self.rules.length)
        return math.ceil(self.batch_size * self.sequence_length / (self.accumulation_steps * split))

    @property
    def own_tiles(self) -> int:
        """Tiles that one device encodes in one forward pass: those of its rows, also where it shares them."""
        split = size_of(self.sizes, self.rules.batch)
        return self.tiles * math.ceil(self.batch_size / (self.accumulation_steps * split))

    @property
    def stages(self) -> int:
        """Stages of the pipeline; 1: none."""
        return self.sizes.get(PIPELINE_AXIS, 1)

    @property
    def microbatches(self) -> int:
        """Microbatches that pass through the stages in one forward pass."""
        rows = self.batch_size // (self.accumulation_steps * size_of(self.sizes, self.rules.batch))
        return 1 if self.stages == 1 else self.rules.microbatches or max(1, rows)

    @property
    def turns(self) -> int:
        """How often a stage runs in one forward pass, the bubble included."""
        return num_turns(self.stages, self.microbatches)

    @property
    def in_stage(self) -> "Layout":
        """The layout of one microbatch, as a stage computes it."""
        if self.microbatches == 1:
            return self
        rules = dataclasses.replace(self.rules, microbatches=1)
        return dataclasses.replace(self, batch_size=self.batch_size // self.microbatches, rules=rules)

    @property
    def share(self) -> float:
        """The part of the work of all periods that a stage does and keeps, the bubble included."""
        return self.turns / (self.microbatches * self.stages)

    def passes(self, stack: Stack) -> tuple[float, float]:
        """Of the layers of the whole model, and of all their tokens, the parts that pass through a stage in one forward
        pass, the bubble included: how often a layer runs, and how much it computes."""
        of_depth = lambda stacked: (stacked * stack.num_stacked + stack.tail) / stack.depth
        return of_depth(self.turns / self.stages), of_depth(self.share)

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

    def exchange(self, config: ModelConfig) -> Capacity | None:
        """How many rows devices exchange with each other in a layer of experts; None: each has all experts."""
        devices, k = self.ways("experts"), config.num_experts_per_tok
        if devices == 1:
            return None
        if (limit := config.expert_limit(self.sequence_length)) is None:
            return capacity(self.tokens * k, devices, self.platform)
        length = self.sequence_length // self.ways("length")
        return limited_capacity(self.tokens // length, length, k, config.num_local_experts // devices, limit)

    def parts(self, axes: Axes) -> int:
        """Number of shards in which a parameter of these logical axes is stored."""
        return math.prod(self.ways(axis) for axis in axes if axis)

    def gathered(self, axes: Axes) -> int:
        """Number of devices from which such a parameter is gathered before use; 1: it is used as stored."""
        return math.prod(self.ways(axis) for axis in axes if axis in self.rules.GATHERED)

    def held(self, p: Parameter) -> int:
        """Elements of a parameter that one device stores, in all layers."""
        return p.size // (self.parts(p.axes) * (self.stages if p.in_stages else 1))

    def stored(self, parameters: Iterable[Parameter]) -> int:
        """Elements of these parameters that one device stores."""
        return sum(map(self.held, parameters))

    def used(self, parameters: Iterable[Parameter]) -> int:
        """Elements of these parameters on one device when they are used in matrix products."""
        return sum(self.held(p) * self.gathered(p.axes) for p in parameters)
