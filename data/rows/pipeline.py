"""Batches ahead of time, on Grain's threads or worker processes.

Nothing here decides what is in a batch, so that threads, workers and hosts may change between two runs of one job.
The position in the stream is the number of the step: there is no state to save.
"""

from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from data.rows.fields import Row

ENDLESS = 1 << 40
"""Steps. Grain wants a length that its indices can hold."""


class BatchIterator(Iterator[Row]):
    """An iterator of batches, each field [rows, ...], that has to be closed: `with`, or `close`."""

    def __init__(self, read: Callable[[int], Row], rows: Sequence[int], batch_size: int, start_step: int,
                 num_steps: int | None, *, workers: int, prefetch: int):  # fmt: skip
        """`read` gives a stream row by number. Raises ValueError for rows that are not of one batch."""
        if not rows or min(rows) < 0 or max(rows) >= batch_size:
            raise ValueError(f"rows must be some of 0 to {batch_size - 1}, got {list(rows)[:8]}")
        if start_step < 0:
            raise ValueError(f"start_step must not be negative, got {start_step}")
        stop = start_step + (ENDLESS if num_steps is None else num_steps)
        wanted = _Wanted(read, tuple(rows), batch_size)
        elements = grain.MapDataset.range(start_step * len(rows), stop * len(rows)).map(wanted).batch(len(rows))
        threads = grain.ReadOptions(num_threads=min(2, prefetch), prefetch_buffer_size=prefetch)
        batches = elements.to_iter_dataset(threads)
        if workers:
            # Grain's workers read options from absl flags, which nobody has parsed outside absl.app.run.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch))
        self._batches: grain.DatasetIterator[Row] | None = iter(batches)

    def __next__(self) -> Row:
        if self._batches is None:
            raise ValueError("the iterator is closed")
        # Workers hand over views of shared memory, which must not outlive the iterator: copy them out.
        return {name: np.array(field) for name, field in next(self._batches).items()}

    def close(self) -> None:
        """Stop threads and workers."""
        if self._batches is not None:
            self._batches.close()
        # Grain closes again when it is collected, which must not be left to the end of the interpreter.
        self._batches = None

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Wanted:
    """From a count over the wanted rows of all steps to the row it means."""

    def __init__(self, read: Callable[[int], Row], rows: tuple[int, ...], batch_size: int):
        self._read, self._rows, self._batch_size = read, rows, batch_size

    def __call__(self, count: int) -> Row:
        step, at = divmod(int(count), len(self._rows))
        return self._read(step * self._batch_size + self._rows[at])
