"""Divides matrices among the devices that hold shards of them: each device gets its share of the matrices whole."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class MatrixShares:
    """Divides n matrices among the G devices that each hold a shard of all of them. Inside `shard_map`."""

    axes: tuple[tuple[str, ...], ...]
    """Mesh axes of each dimension of a matrix."""
    shape: tuple[int, ...]
    """Shape of a shard."""

    @property
    def group(self) -> tuple[str, ...]:
        return tuple(axis for axes in self.axes for axis in axes)

    @property
    def _sizes(self) -> list[int]:
        return [jax.lax.axis_size(axis) for axis in self.group]

    def _order(self) -> list[int]:
        """Of the axes [*group, n/G, *shard]: first the matrices, then each dimension behind the mesh axes that split
        it."""
        found, before = [len(self.group)], 0
        for i, axes in enumerate(self.axes):
            found += [*range(before, before + len(axes)), len(self.group) + 1 + i]
            before += len(axes)
        return found

    def collect(self, shards: jax.Array) -> jax.Array:
        """[n, *shard] -> [ceil(n/G), *whole]: this device's share of the matrices; zeros fill up the last ones."""
        parts = math.prod(self._sizes)
        spare = -len(shards) % parts
        shards = jnp.pad(shards, [(0, spare), *[(0, 0)] * len(self.shape)])
        blocks = self._exchange(shards).reshape(*self._sizes, -1, *self.shape).transpose(self._order())
        whole = [
            size * math.prod(jax.lax.axis_size(axis) for axis in axes)
            for size, axes in zip(self.shape, self.axes, strict=True)
        ]
        return blocks.reshape(-1, *whole)

    def distribute(self, whole: jax.Array, n: int) -> jax.Array:
        """The inverse: [ceil(n/G), *whole] -> [n, *shard]."""
        order = self._order()
        split = [len(whole)]
        for size, axes in zip(self.shape, self.axes, strict=True):
            split += [*(jax.lax.axis_size(axis) for axis in axes), size]
        blocks = whole.reshape(split).transpose([order.index(i) for i in range(len(order))])
        return self._exchange(blocks.reshape(-1, *self.shape))[:n]

    def _exchange(self, x: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(x, self.group, split_axis=0, concat_axis=0, tiled=True) if self.group else x
