"""Prefetches batches on Grain's threads or worker processes.

The content of a batch does not depend on anything here, so threads, workers and hosts may change when a run is resumed.
The position in the stream is the step number, so there is no state to save.
"""

from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from data.rows.fields import Row

ENDLESS = 1 << 40
"""Number of steps of an endless stream; Grain needs a length that fits its indices."""


class BatchIterator(Iterator[Row]):
    """An iterator of batches, each field [rows, ...]. It must be closed, by `with` or `close`."""

    def __init__(self, read: Callable[[int], Row], rows: Sequence[int], batch_size: int, start_step: int,
                 num_steps: int | None, *, workers: int, prefetch: int):  # fmt: skip
        """`read` returns the rows `rows` of a batch, given its step; rows count from 0. Raises ValueError for rows
        outside a batch and for a negative `start_step`."""
        if not rows or min(rows) < 0 or max(rows) >= batch_size:
            raise ValueError(f"rows must be numbers from 0 to {batch_size - 1}, got {list(rows)[:8]}")
        if start_step < 0:
            raise ValueError(f"start_step must not be negative, got {start_step}")
        stop = start_step + (ENDLESS if num_steps is None else num_steps)
        elements = grain.MapDataset.range(start_step, stop).map(_OfStep(read))
        threads = grain.ReadOptions(num_threads=min(2, prefetch), prefetch_buffer_size=prefetch)
        batches = elements.to_iter_dataset(threads)
        if workers:
            # Grain's workers read absl flags, which are parsed only under absl.app.run.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch))
        self._are_shared = workers > 0
        self._batches: grain.DatasetIterator[Row] | None = iter(batches)

    def __next__(self) -> Row:
        if self._batches is None:
            raise ValueError("the iterator is closed")
        batch = next(self._batches)
        # Workers return views of shared memory, which must not outlive the iterator, so they are copied.
        return {name: np.array(field) for name, field in batch.items()} if self._are_shared else dict(batch)

    def close(self) -> None:
        """Stops threads and workers."""
        if self._batches is not None:
            self._batches.close()
        # Grain closes again when it is collected, which must not happen while the interpreter exits.
        self._batches = None

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _OfStep:
    """`read` for a step that Grain counts."""

    def __init__(self, read: Callable[[int], Row]):
        self._read = read

    def __call__(self, step: int) -> Row:
        return self._read(int(step))
