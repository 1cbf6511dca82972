"""How a train step is spread over devices, and one device's share of a parameter."""

import dataclasses
import math
from collections.abc import Iterable

from maverick_jax.parameters import Axes, Parameter
from maverick_jax.sharding import ShardingRules, size_of

BYTES = {"float32": 4, "bfloat16": 2}
"""Of one element, by dtype."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a train step is spread over devices."""

    rules: ShardingRules
    sizes: dict[str, int]
    """Devices per mesh axis."""
    batch_size: int
    """Sequences per optimizer step, whole job."""
    sequence_length: int
    accumulation_steps: int = 1
    loss_chunk: int | None = None
    """Tokens per device whose logits exist at a time; None: the loss's own choice."""

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def tokens(self) -> int:
        """Tokens that one device holds in one forward pass."""
        split = size_of(self.sizes, self.rules.batch) * size_of(self.sizes, self.rules.length)
        return math.ceil(self.batch_size * self.sequence_length / (self.accumulation_steps * split))

    def ways(self, logical: str) -> int:
        return size_of(self.sizes, getattr(self.rules, logical))

    def parts(self, axes: Axes) -> int:
        """Into how many parts a parameter of these logical axes is stored."""
        return math.prod(self.ways(axis) for axis in axes if axis)

    def gathered(self, axes: Axes) -> int:
        """How many devices such a parameter is gathered from before use; 1: it is used as it is stored."""
        return math.prod(self.ways(axis) for axis in axes if axis in self.rules.GATHERED)

    def stored(self, parameters: Iterable[Parameter]) -> int:
        """Elements of these parameters that one device stores."""
        return sum(p.size // self.parts(p.axes) for p in parameters)

    def used(self, parameters: Iterable[Parameter]) -> int:
        """Elements of these parameters on one device in the form they are multiplied in."""
        return sum(p.size * self.gathered(p.axes) // self.parts(p.axes) for p in parameters)
