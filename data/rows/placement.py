"""Places rows of a batch on devices. This is the only file of `data` that uses JAX.

A field of a global batch has shape [A, B/A, T, ...], or [A, B/A] if it has one value per row, for the A microbatches of
one update. Its flattened row g = a * (B/A) + b is row (a, b). A process reads only the rows that its devices hold.
"""

from collections.abc import Sequence

import jax
import numpy as np


def rows_of_process(sharding: jax.sharding.Sharding, global_shape: Sequence[int]) -> list[int]:
    """The flattened rows, ascending, that this process's devices hold in whole or in part if an array of `global_shape`
    [A, B/A, ...] has this `sharding`."""
    A, B = global_shape[:2]
    grid = np.arange(A * B).reshape(A, B)
    parts = sharding.addressable_devices_indices_map(tuple(global_shape)).values()
    return np.unique(np.concatenate([grid[part[:2]].ravel() for part in parts if part is not None])).tolist()


def place(
    local: np.ndarray, rows: Sequence[int], sharding: jax.sharding.Sharding, global_shape: Sequence[int]
) -> jax.Array:
    """Makes the global array [A, B/A, ...] from each process's rows: its flattened row `rows[i]` is `local[i]`.
    `global_shape`, [A, B/A, T] or [A, B/A], and `sharding` describe its first axes; the others are not sharded. Raises
    ValueError if `local` has another shape or lacks a row that this process's devices hold."""
    A, B, *row = global_shape
    if local.shape[: 1 + len(row)] != (len(rows), *row):
        raise ValueError(f"local rows have shape {local.shape}; expected a shape that begins with {(len(rows), *row)}")
    where = np.full(A * B, -1)
    where[np.asarray(rows)] = np.arange(len(rows))
    where = where.reshape(A, B)

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        at = where[index[:2]]
        if (at < 0).any():
            raise ValueError("this process's devices hold rows that it was not given; see rows_of_process")
        return local[at][:, :, *index[2:]]

    with jax.transfer_guard_host_to_device("allow"):  # explicit, but JAX counts a callback's transfers as implicit
        return jax.make_array_from_callback((A, B, *local.shape[1:]), sharding, part)
