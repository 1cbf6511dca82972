"""Opening a job: what every use of a run's config needs before its first program, checked once and in one order.

`Session.open` is the one place that does it, for training, evaluation and everything else. Its order:

1. processes: join the job that the environment describes;
2. mesh: find the size of each axis, and check that everything that is split is split evenly; a run then says what it
   is;
3. logging: check that the packages of its sinks are installed;
4. tokenizer: check that the model has a row for each of its ids, and knows those of pictures; read the tasks that a run
   is evaluated on;
5. references: find the objective's frozen models; check that they fit the objective, the mesh and the tokenizer;
6. rows: open those to train on, with the stored targets they carry, and the held-out ones;
7. run directory: check that it holds this run or none; open the rows of the run's later stages, on their meshes;
8. references that are missing: train them, each in a session of its own; then do 5 and 7 again;
9. compilation cache: choose its directory.

All checks come before anything is compiled, except the second look at references that had to be made. Before step 8
nothing is written but the cache of tokenized data, which all runs share. A caller names the parts it needs; the others
are not opened. A job that trains first claims its run directory (`claimed_run`), so that a second one changes nothing.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from maverick_jax import events
from maverick_jax.checkpoint.lease import claimed
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from maverick_jax.model_source import CHECKPOINTS, open_source
from maverick_jax.sharding import MeshConfig, make_mesh
from maverick_jax.target import Target
from maverick_jax.text import Tokenizer, load_tokenizer
from train import announce
from train.batches import Feed
from train.compilation import use_compilation_cache
from train.config import RunConfig, check_against_mesh, check_picture_tokens, check_vocabulary
from train.evaluation.held_out import HeldOut
from train.evaluation.tasks import OpenTask, open_tasks
from train.faults.hangs import watched
from train.faults.processes import initialize_from_environment
from train.goodput.timeline import timed
from train.identity import metadata, refuse_other_run
from train.latents import check_latent_token
from train.metrics_writer import check_sinks
from train.teachers.references import (
    Found,
    check_references,
    check_shared_rows,
    find_references,
    fingerprints,
    load_references,
    missing_references,
)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a caller needs of a job besides its processes, mesh and compilation cache."""

    rows: bool = False
    """Rows to train on: `Session.feed`."""
    held_out: bool = False
    """Held-out rows: `Session.held_out`."""
    references: bool = False
    """The objective's frozen models: `Session.references`, `fingerprints`, `load_references`."""
    run_dir: bool = False
    """A run directory to write to, which may hold an earlier part of this run, and sinks of its metrics. Needs `rows`
    and `references`: a run keeps their fingerprints (`Session.metadata`)."""
    one_device: bool = False
    """Use the first local device alone, whatever `config.mesh` says, and join no job."""
    tasks: bool = False
    """The tasks of `config.run.eval_tasks`: `Session.tasks`."""
    alone: str = ""
    """The error for a job of several processes, where each must be started by itself; empty: they work together."""


@dataclasses.dataclass(frozen=True)
class Session:
    """An opened job. Programs and batches are made under `jax.set_mesh(session.mesh)`."""

    config: RunConfig
    target: Target
    mesh: Mesh
    tokenizer: Tokenizer
    _feed: Feed | None = None
    _held_out: HeldOut | None = None
    _references: dict[str, Found] | None = None
    tasks: Sequence[OpenTask] = ()

    @classmethod
    def open(cls, config: RunConfig, parts: Parts, train: Callable[[RunConfig], Any] | None = None) -> "Session":
        """See the module for the order. Raises InputError for the first thing that does not fit.

        train: trains a run to its end, for references that a config makes and that are not there yet. None: a
        reference that is not there is an error.
        """
        target = _target(parts)
        if parts.one_device:
            config = config.model_copy(update={"mesh": MeshConfig(data=1)})
        mesh = make_mesh({}, target.devices) if parts.one_device else mesh_on(config, target)
        if parts.run_dir:
            announce.job(config, mesh)
            check_sinks(config.logging)
        tokenizer = load_tokenizer(config.data.tokenizer)
        check_vocabulary(config, tokenizer.vocab_size)
        check_picture_tokens(config, tokenizer)
        check_latent_token(config, tokenizer)
        tasks = open_tasks(config.run.eval_tasks, tokenizer, encoder=config.model.vision) if parts.tasks else ()
        missing = missing_references(config) if train is not None and parts.references else {}
        find = functools.partial(_references, config, mesh, tokenizer)
        references = find(missing) if parts.references else None
        feed = Feed.open(config) if parts.rows else None
        held_out = HeldOut.of(config) if parts.held_out else None
        session = cls(config, target, mesh, tokenizer, feed, held_out, references, tasks)
        if parts.run_dir:
            _refuse_other_run(session, missing)
            announce.data(config, session.feed)
            _check_later_stages(config)
        if missing and train is not None:
            for reference in missing.values():
                train(reference)
            session = dataclasses.replace(session, _references=find({}))
            if parts.run_dir:
                _refuse_other_run(session)
        use_compilation_cache()
        return session

    @property
    def feed(self) -> Feed:
        """Rows to train on."""
        assert self._feed is not None, "the session was opened without Parts(rows=True)"
        return self._feed

    @property
    def held_out(self) -> HeldOut:
        """Rows to evaluate on."""
        assert self._held_out is not None, "the session was opened without Parts(held_out=True)"
        return self._held_out

    @property
    def references(self) -> dict[str, Found]:
        """The objective's frozen models on disk, by name."""
        assert self._references is not None, "the session was opened without Parts(references=True)"
        return self._references

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Digests of each reference's numbers, by name."""
        return fingerprints(self.references)

    def load_references(self) -> dict[str, Maverick]:
        """The references, each split over the mesh by its own rules."""
        return load_references(self.references, self.mesh)

    def metadata(self) -> dict[str, Any]:
        """What every checkpoint of this run says about the run."""
        return metadata(self.config, self.feed.train.fingerprint, self.fingerprints | self.feed.beside)


@contextlib.contextmanager
def claimed_run(config: RunConfig) -> Iterator[None]:
    """No other job writes to the run directory inside the block, whose wall time is that of the run
    (`train.goodput.timeline`). Raises RunInUse, naming the other job, if one does."""
    run_dir = config.run.directory
    with events.recorded(), timed() as clock:
        initialize_from_environment()
        with claimed(run_dir / CHECKPOINTS), watched(config.guard.hangs, run_dir, clock):
            yield


def _check_later_stages(config: RunConfig) -> None:
    """What is wrong with the mesh or the data of a later stage is an error now, not in a week; data is tokenized."""
    for stage in config.in_stages[config.place.number + 1 :]:
        Session.open(stage, Parts(rows=True, held_out=stage.run.eval_every > 0))


def _refuse_other_run(session: Session, missing: Collection[str] = ()) -> None:
    """The run directory is only read. References that are not there yet have no fingerprint to compare."""
    if missing:
        there = {name: found for name, found in session.references.items() if name not in missing}
        session = dataclasses.replace(session, _references=there)
    store = CheckpointStore(session.config.run.directory / CHECKPOINTS, session.config.checkpoint, read_only=True)
    refuse_other_run(session.config, session.metadata(), store)


def _target(parts: Parts) -> Target:
    """The devices of the job, which this process joins."""
    if parts.one_device:
        return Target.one_device()
    initialize_from_environment()
    if parts.alone and jax.process_count() > 1:
        raise InputError(parts.alone)
    return Target.local()


def mesh_on(config: RunConfig, target: Target) -> Mesh:
    """The config's mesh on these devices. Raises InputError if it does not divide what it splits."""
    sizes = config.mesh.resolve(target.count)
    check_against_mesh(config, sizes)
    return make_mesh(sizes, target.devices)


def _references(
    config: RunConfig, mesh: Mesh, tokenizer: Tokenizer, missing: Mapping[str, RunConfig]
) -> dict[str, Found]:
    """The objective's frozen models, checked as far as they are there; `missing` are made later, on this mesh."""
    sizes = dict(mesh.shape)
    for reference in missing.values():
        check_against_mesh(reference, reference.mesh.resolve(mesh.size))
    found = find_references(config)
    for name in (name for name in found if name not in missing):
        open_source(found[name].path)
    check_references(found, tokenizer, sizes, missing)
    check_shared_rows(config, found, sizes)
    return found
