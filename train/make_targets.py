"""`maverick data targets`: a teacher says once, of every row a run will train on, what its targets on disk hold."""

import functools
import logging
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, reshard
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from data.rows import placement
from data.targets.format import Header, Row, Targets
from data.targets.writer import TargetsWriter, rows_per_part
from maverick_jax.errors import InputError
from maverick_jax.ops.top_k import Top, top_k
from maverick_jax.progress import Progress
from maverick_jax.sharding import ShardingRules, make_mesh
from train.batches import Feed
from train.config import RunConfig, check_against_mesh, check_vocabulary, read_config
from train.faults.processes import initialize_from_environment
from train.objectives import Distill
from train.objectives.distill.objective import TEACHER
from train.objectives.distill.stored import OfflineTargets
from train.objectives.next_token import hidden_states
from train.run import make_references, use_compilation_cache
from train.teachers.references import Found, check_references, find_references, fingerprints, load_references

log = logging.getLogger(__name__)

Says = Callable[[dict[str, jax.Array], jax.Array], Top]
"""(batch [A, b, T], uniforms [A, b, T, s]) -> what the teacher says of it, [A, b, T, ...]."""


def make_targets(
    path_or_name: str, overrides: Iterable[str] = (), *, out: str | None = None, shard: tuple[int, int] = (0, 1)
) -> dict[str, Any]:
    """Writes the targets that the config asks for, or the parts of them that are job i's of n (`shard`), and returns a
    summary. What is complete is not done again. Raises InputError for a config that asks for none, and for a folder
    that holds others."""
    config = read_config(path_or_name, overrides)
    wanted = _wanted(config)
    initialize_from_environment()
    if jax.process_count() > 1:
        raise InputError("data targets: each process makes parts of its own: start them apart, with --shard i/n")
    assert isinstance(config.objective, Distill)
    config = config.model_copy(update={"objective": config.objective.at_hand()})
    sizes = config.mesh.resolve(jax.device_count())
    check_against_mesh(config, sizes)
    make_references(config)
    feed = Feed.open(config)
    check_vocabulary(config, feed.train.tokenizer.vocab_size)
    teacher = find_references(config)
    check_references(teacher, feed.train.tokenizer, sizes)
    header = header_of(config, wanted, feed, fingerprints(teacher)[TEACHER])
    writer = TargetsWriter.open(pathlib.Path(out or wanted.path).expanduser(), header)
    if missing := writer.missing(shard):
        use_compilation_cache()
        with jax.set_mesh(mesh := make_mesh(sizes)):
            _write(writer, missing, feed, teacher_program(config, wanted, teacher, mesh))
    return _summary(writer, writer.finish())


def _wanted(config: RunConfig) -> OfflineTargets:
    objective = config.objective
    if not isinstance(objective, Distill) or objective.targets is None or objective.teacher is None:
        raise InputError("data targets: expected objective: {kind: distill, teacher: ..., targets: {path: ...}}")
    if objective.targets.tail_samples and objective.targets.top_k >= config.model.vocab_size:
        raise InputError(f"objective.targets.tail_samples: top_k {objective.targets.top_k} leaves no other tokens")
    return objective.targets


def header_of(config: RunConfig, wanted: OfflineTargets, feed: Feed, teacher: str) -> Header:
    """Of targets for rows [0, run.steps * data.batch_size) of the stream. `teacher`: its fingerprint."""
    if wanted.top_k > config.model.vocab_size:
        raise InputError(f"objective.targets.top_k: {wanted.top_k} is more than model.vocab_size "
                         f"({config.model.vocab_size})")  # fmt: skip
    batch_size = config.data.batch_size
    header = Header(
        vocab_size=config.model.vocab_size,
        top_k=wanted.top_k,
        tail_samples=wanted.tail_samples,
        dtype=wanted.dtype,
        temperature=config.objective.divergence.temperature,
        seed=config.run.seed,
        teacher=teacher,
        data=feed.train.fingerprint,
        tokenizer=feed.train.tokenizer.fingerprint,
        sequence_length=config.data.sequence_length,
        rows=config.run.steps * batch_size,
        rows_per_part=batch_size,
    )
    return header.model_copy(update={"rows_per_part": rows_per_part(header.record_bytes, batch_size)})


def teacher_program(config: RunConfig, wanted: OfflineTargets, teacher: dict[str, Found], mesh: Mesh) -> Says:
    """What asks the teacher, loaded onto `mesh`: forward only, one microbatch at a time."""
    rules = config.mesh.sharding_rules()
    options = {"k": wanted.top_k, "temperature": config.objective.divergence.temperature, "rules": rules}
    program = jax.jit(functools.partial(_says, options))
    return functools.partial(program, load_references(teacher, mesh)[TEACHER])


def _says(options: dict[str, Any], teacher, batch: dict[str, jax.Array], uniforms: jax.Array) -> Top:
    rules: ShardingRules = options["rules"]

    def one(microbatch):
        batch, uniforms = microbatch
        hidden = reshard(hidden_states(teacher, batch)[0], rules("batch", "length", None))
        head = reshard(teacher.output_weight(), rules.compute("embed", "vocab"))
        return top_k(hidden, head, batch["labels"], uniforms, **options)

    return jax.lax.map(one, (batch, uniforms))


def _write(writer: TargetsWriter, missing: list[int], feed: Feed, says: Says) -> None:
    header, batch_size = writer.header, feed.config.data.batch_size
    total = sum(len(header.part_rows(part)) for part in missing)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    log.info("%s: %d rows to do, in %d of %d parts", writer.path, total, len(missing), header.num_parts)
    with Progress("targets", columns, total) as progress:
        done, started = 0, time.monotonic()
        for number in missing:
            with writer.part(number) as part:
                steps = part.rows.start // batch_size, part.rows.stop // batch_size
                for index, row, arrays in _answers(header, feed, says, *steps):
                    part.add(index, row, arrays, _sums(row, arrays))
                    done += 1
                    rate = done * header.sequence_length / (time.monotonic() - started)
                    progress.update(f"targets: {done:,} of {total:,} rows, {rate:,.0f} tokens/s", done)


def _answers(header: Header, feed: Feed, says: Says, start: int, stop: int) -> Iterator[tuple[int, Row, Row]]:
    """(number, row, arrays) of every row of the batches of steps [start, stop)."""
    A, b, T = feed.shape
    with feed.batches(start, stop) as batches:
        for step, batch in enumerate(batches, start):
            first = step * A * b
            uniforms = np.stack([_uniforms(header, first + g) for g in range(A * b)])
            placed = placement.place(uniforms, range(A * b), batch["tokens"].sharding, feed.shape)
            found = jax.device_get((batch, says(batch, placed)._asdict()))
            rows, arrays = jax.tree.map(lambda x: x.reshape(A * b, T, *x.shape[3:]), found)
            for g in range(A * b):
                yield first + g, {name: x[g] for name, x in rows.items()}, {name: x[g] for name, x in arrays.items()}


def _uniforms(header: Header, index: int) -> np.ndarray:
    """float32[T, s] in [0, 1), of the seed, the row's number and the place alone."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([header.seed, index])))
    return generator.random((header.sequence_length, header.tail_samples), np.float32)


def _sums(row: Row, arrays: Row) -> dict[str, float]:
    real, weights = row["segment_ids"] > 0, row["loss_weights"].astype(np.float64)
    return {
        "positions": float(real.sum()),
        "mass": float(((1 - np.exp(arrays["log_tail"].astype(np.float64))) * real).sum()),
        "labels": float(weights.sum()),
        "loss": float((-arrays["label_log_prob"] * weights).sum()),
    }


def _summary(writer: TargetsWriter, targets: Targets | None) -> dict[str, Any]:
    header = writer.header
    parts = f"{header.num_parts - len(writer.missing()):,} of {header.num_parts:,}"
    found = {"path": str(writer.path), "rows": header.rows, "parts": parts, "complete": targets is not None}
    found["bytes_per_token"] = header.bytes_per_token
    if targets is not None:
        sums = targets.sums
        found["bytes"] = sum(part.bytes for part in targets.parts)
        found["teacher_loss"] = sums["loss"] / max(sums["labels"], 1e-9)
        found["teacher_mass"] = sums["mass"] / max(sums["positions"], 1e-9)
    return found


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what `make_targets` has returned."""
    console = console or Console()
    said = [f"{found['path']}: {found['rows']:,} rows, {found['bytes_per_token']:,.1f} bytes per token"]
    if found["complete"]:
        loss, mass = f"{found['teacher_loss']:.4f}", f"{found['teacher_mass']:.4f}"
        said.append(f"{found['bytes']:,} bytes; the teacher's mean loss {loss} nats, mean mass in its top k {mass}")
    else:
        said.append(f"{found['parts']} parts are complete; others are left to other shards")
    console.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)
