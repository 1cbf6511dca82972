"""`maverick data targets`: run a teacher once over a run's training rows and store its top-k log-probabilities."""

import pathlib
from collections.abc import Iterable
from typing import Any

import jax
from rich.console import Console

from data.targets.format import Targets
from data.targets.writer import TargetsWriter
from maverick_jax.errors import InputError
from train.config_files import read_config
from train.objectives.base import Objective, ToStore
from train.run import train_to_end
from train.session import Parts, Session
from train.teachers.forward import teacher_forward
from train.teachers.write_targets import header_of, write_targets

ALONE = "data targets: cannot run as one job of several processes; start each process separately, with --shard i/n"


def make_targets(
    path_or_name: str, overrides: Iterable[str] = (), *, out: str | None = None, shard: tuple[int, int] = (0, 1)
) -> dict[str, Any]:
    """Writes the targets that the config describes and returns a summary. With `shard` (i, n), only the parts of job i
    of n are written. Complete parts are kept. Raises InputError for a config without targets, and for a folder that
    contains other targets."""
    config = read_config(path_or_name, overrides)
    wanted = to_store(config.objective, config.model.vocab_size)
    # this objective loads the model instead of reading what it computed, which does not exist yet
    config = config.model_copy(update={"objective": wanted.objective})
    session = Session.open(config, Parts(rows=True, references=True, alone=ALONE), train=train_to_end)
    header = header_of(config, wanted, session.feed, session.fingerprints[wanted.model])
    writer = TargetsWriter.open(pathlib.Path(out or wanted.wanted.path).expanduser(), header)
    if missing := writer.missing(shard):
        with jax.set_mesh(session.mesh):
            teacher, rules = session.load_references()[wanted.model], config.mesh.sharding_rules()
            forward = teacher_forward(teacher, wanted.wanted, wanted.temperature, rules)
            write_targets(writer, missing, session.feed, forward)
    return _summary(writer, writer.finish())


def to_store(objective: Objective, vocab_size: int) -> ToStore:
    """What the objective wants stored. Raises InputError for an objective that names no folder or no model, for a
    `top_k` above the vocabulary size, and for samples from an empty tail."""
    if (found := objective.to_store()) is None:
        raise InputError("data targets: expected objective: {kind: distill, teacher: ..., targets: {path: ...}}, or "
                         "{kind: preference, reference: {kind: stored, path: ..., model: ...}}")  # fmt: skip
    wanted = found.wanted
    if wanted.top_k > vocab_size:
        raise InputError(f"objective.targets.top_k: {wanted.top_k} is more than model.vocab_size ({vocab_size})")
    if wanted.tail_samples and wanted.top_k == vocab_size:
        raise InputError(f"objective.targets.tail_samples: top_k {wanted.top_k} leaves no other tokens")
    return found


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
    """Prints the result of `make_targets`."""
    console = console or Console()
    lines = [f"{found['path']}: {found['rows']:,} rows, {found['bytes_per_token']:,.1f} bytes per token"]
    if found["complete"]:
        loss, mass = f"{found['teacher_loss']:.4f}", f"{found['teacher_mass']:.4f}"
        lines.append(f"{found['bytes']:,} bytes; the teacher's mean loss {loss} nats, mean mass in its top k {mass}")
    else:
        lines.append(f"{found['parts']} parts are complete; other shards write the others")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
