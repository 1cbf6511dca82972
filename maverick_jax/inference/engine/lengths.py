"""Sizes that are rounded up so that few programs are compiled, and the devices that divide sequences."""

import math

from jax.sharding import Mesh

from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import axes_tuple

SMALLEST_BUCKET = 32
"""Lengths are rounded up to powers of two, at least this one."""


def bucket(length: int) -> int:
    """The power of two, at least `SMALLEST_BUCKET`, that `length` is rounded up to."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


def buckets(least: int, most: int) -> list[int]:
    """Lengths that sizes are rounded up to: powers of two from `least` on, and `most`."""
    found = [least]
    while found[-1] * 2 < most:
        found.append(found[-1] * 2)
    return [n for n in found if n < most] + [most]


def mesh_of(model: Maverick) -> Mesh:
    """The mesh that holds the model, with or without its layers."""
    return model.embed[...].sharding.mesh


def device_groups(model: Maverick) -> int:
    """Groups of devices along the batch axes of the model's mesh. The number of sequences is a multiple of it."""
    mesh = mesh_of(model)
    return math.prod(mesh.shape[axis] for axis in axes_tuple(model.rules.batch))
