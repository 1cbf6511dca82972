"""Computes a teacher's targets for a run's training rows, batch by batch, and writes them part by part."""

import dataclasses
import logging
import time
from collections.abc import Iterator

import jax
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from data.rows import placement
from data.rows.fields import Row
from data.targets.format import Header
from data.targets.writer import TargetsWriter, rows_per_part
from maverick_jax.progress import ProgressDisplay
from train.batches import Feed
from train.config import RunConfig
from train.objectives.base import ToStore
from train.teachers.forward import TeacherForward

log = logging.getLogger(__name__)


def header_of(config: RunConfig, store: ToStore, feed: Feed, teacher: str) -> Header:
    """The header of targets for rows [0, steps * data.batch_size) of the stream, of a run or of one of its stages.
    `teacher`: the teacher's fingerprint."""
    batch_size, wanted = config.data.batch_size, store.wanted
    header = Header(
        vocab_size=config.model.vocab_size,
        top_k=wanted.top_k,
        tail_samples=wanted.tail_samples,
        dtype=wanted.dtype,
        temperature=store.temperature,
        seed=config.run.seed,
        teacher=teacher,
        data=feed.train.fingerprint,
        tokenizer=feed.train.tokenizer.fingerprint,
        sequence_length=config.data.sequence_length,
        rows=config.place.steps * batch_size,
        rows_per_part=batch_size,
    )
    return header.model_copy(update={"rows_per_part": rows_per_part(header.record_bytes, batch_size)})


def write_targets(writer: TargetsWriter, missing: list[int], feed: Feed, forward: TeacherForward) -> None:
    """Writes the parts numbered `missing`. An interrupted part is written from its beginning by the next call."""
    header, batch_size, feed = writer.header, feed.config.data.batch_size, dataclasses.replace(feed, first=0)
    total = sum(len(header.part_rows(part)) for part in missing)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    log.info("%s: writing targets of %d rows, in %d of %d parts", writer.path, total, len(missing), header.num_parts)
    with ProgressDisplay("targets", columns, total) as progress:
        done, started = 0, time.monotonic()
        for number in missing:
            with writer.part(number) as part:
                steps = part.rows.start // batch_size, part.rows.stop // batch_size
                for index, row, arrays in _rows_and_targets(header, feed, forward, *steps):
                    part.add(index, row, arrays, _sums(row, arrays))
                    done += 1
                    rate = done * header.sequence_length / (time.monotonic() - started)
                    progress.update(f"targets: {done:,} of {total:,} rows, {rate:,.0f} tokens/s", done)


def _rows_and_targets(
    header: Header, feed: Feed, forward: TeacherForward, start: int, stop: int
) -> Iterator[tuple[int, Row, Row]]:
    """(number, row, targets) of every row of the batches of steps [start, stop)."""
    A, b, T = feed.shape
    with feed.batches(start, stop) as batches:
        for step, batch in enumerate(batches, start):
            first = step * A * b
            uniforms = feed.split.split(np.stack([_uniforms(header, first + g) for g in range(A * b)]), 1)
            placed = placement.place(uniforms, range(A * b), batch["tokens"].sharding, feed.shape)
            found = jax.device_get((batch, forward(batch, placed)._asdict()))
            in_order = lambda x: feed.split.whole(x.reshape(A * b, T, *x.shape[3:]), 1)
            rows, arrays = jax.tree.map(in_order, found)
            for g in range(A * b):
                yield first + g, {name: x[g] for name, x in rows.items()}, {name: x[g] for name, x in arrays.items()}


def _uniforms(header: Header, index: int) -> np.ndarray:
    """float32[T, s] in [0, 1); they depend only on the seed, the row's number and the position."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([header.seed, index])))
    return generator.random((header.sequence_length, header.tail_samples), np.float32)


def _sums(row: Row, arrays: Row) -> dict[str, float]:
    """A row's contribution to the sums of its part: positions without padding, top-k mass, labels, and the teacher's
    loss in nats."""
    real, weights = row["segment_ids"] > 0, row["loss_weights"].astype(np.float64)
    return {
        "positions": float(real.sum()),
        "mass": float(((1 - np.exp(arrays["log_tail"].astype(np.float64))) * real).sum()),
        "labels": float(weights.sum()),
        "loss": float((-arrays["label_log_prob"] * weights).sum()),
    }
