"""Rows of a batch onto devices. The only file of `data` that knows JAX.

A field of a global batch is [A, B/A, T, ...] or, per row, [A, B/A]: A microbatches of one optimizer step; its flattened
row g is (a, b) with g = a * (B/A) + b. A process reads the rows that its devices hold and no others.
"""

from collections.abc import Sequence

import jax
import numpy as np


def rows_of_process(sharding: jax.sharding.Sharding, global_shape: Sequence[int]) -> list[int]:
    """Flattened rows, ascending, of which this process's devices hold some part under `sharding` of an array of
    `global_shape` [A, B/A, ...]."""
    A, B = global_shape[:2]
    grid = np.arange(A * B).reshape(A, B)
    parts = sharding.addressable_devices_indices_map(tuple(global_shape)).values()
    return np.unique(np.concatenate([grid[part[:2]].ravel() for part in parts if part is not None])).tolist()


def place(
    local: np.ndarray, rows: Sequence[int], sharding: jax.sharding.Sharding, global_shape: Sequence[int]
) -> jax.Array:
    """The global array [A, B/A, ...] whose flattened row `rows[i]` is `local[i]`, from each process's own rows.
    `global_shape`, [A, B/A, T] or [A, B/A], and `sharding` are of its first axes; the others are whole everywhere.
    Raises ValueError where `local` lacks a row that this process's devices hold, or has another shape."""
    A, B, *row = global_shape
    if local.shape[: 1 + len(row)] != (len(rows), *row):
        raise ValueError(f"local rows have shape {local.shape}; expected {(len(rows), *row)} and more")
    where = np.full(A * B, -1)
    where[np.asarray(rows)] = np.arange(len(rows))
    where = where.reshape(A, B)

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        at = where[index[:2]]
        if (at < 0).any():
            raise ValueError("this process's devices hold rows that it was not given; see rows_of_process")
        return local[at][:, :, *index[2:]]

    with jax.transfer_guard_host_to_device("allow"):  # explicit, but JAX counts a callback's as implicit
        return jax.make_array_from_callback((A, B, *local.shape[1:]), sharding, part)
