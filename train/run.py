"""`maverick train`: opens a session for a config and trains from the newest checkpoint."""

import contextlib
from collections.abc import Iterable
from typing import Any

import jax

from maverick_jax.errors import disk_failures
from maverick_jax.model_source import CHECKPOINTS
from maverick_jax.progress import Working
from train import announce
from train.carried import StageBefore
from train.config import RunConfig
from train.config_files import read_run
from train.evaluation.during import evaluations
from train.faults.at_once import NOTHING_LOST, SAVED_STAYS, leaves_at_once
from train.faults.offloaded import check_offload
from train.faults.processes import leave_after
from train.faults.rollback import Rollbacks, goes_back
from train.flops import flops_of_run
from train.hook_order import hooks_of
from train.restore import StateParts, restore_or_start, stage_to_train, store_of
from train.rollouts.source import Setting
from train.run_folder import begins, describe
from train.session import Parts, Session, claimed_run
from train.step import compile_step
from train.updates import Updates


def main(path_or_name: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Trains the config to its last step, resuming what its run directory holds. Returns what `--json` prints.

    Raises MaverickError subclasses, whose `exit_code` is the process's; in a job of several processes an error ends
    this process at once instead, because the others may never reach the ordinary way out."""
    config = read_run(path_or_name, overrides)
    try:
        with leaves_at_once(SAVED_STAYS), disk_failures():
            return train_to_end(config)
    except BaseException as error:
        if jax.distributed.is_initialized():
            leave_after(error)
        raise


def train_to_end(config: RunConfig) -> dict[str, Any]:
    """As `main`, of a config that has been read, stage by stage. References of runs of their own are trained first.

    Raises RunInUse, before anything else is done, if another job works in the run directory."""
    with claimed_run(config):
        session = _open(stage_to_train(config))
        while True:
            if (stage := stage_to_train(config)) is not session.config:
                session = _open(stage)
            back = goes_back(config.run.directory / CHECKPOINTS, config.checkpoint)
            with jax.set_mesh(session.mesh), contextlib.suppress(StageBefore), back:
                if (done := _train(session)) and stage is config.in_stages[-1]:
                    return done


def _open(config: RunConfig) -> Session:
    """A signal while data is prepared ends the process at once. While a reference trains, it saves that run first."""
    parts = Parts(rows=True, held_out=config.run.eval_every > 0, references=True, run_dir=True, tasks=True)
    with contextlib.ExitStack() as guard:
        guard.enter_context(leaves_at_once(NOTHING_LOST))

        def train(reference: RunConfig) -> None:
            guard.close()
            train_to_end(reference)
            guard.enter_context(leaves_at_once(NOTHING_LOST))

        return Session.open(config, parts, train=train)


def _train(session: Session) -> dict[str, Any]:
    config, folder, last = session.config, session.config.run.directory, session.config.run.steps
    parts, store, feed = StateParts.of(config, session.references), store_of(config), session.feed
    begins(config, store)
    with leaves_at_once(NOTHING_LOST):
        check_offload(config.model.network, config.mesh.sharding_rules(), session.mesh, session.target)
        state = restore_or_start(parts, store, session.mesh)
        start = int(state.step)
        announce.start(config, start, int(state.skipped))
        rollbacks = Rollbacks.at(store, start, config.place.first)
        if start >= last:
            store.close()
            return {"run_dir": str(folder), "step": start}
        flops = sum(flops_of_run(config, {name: found.config for name, found in session.references.items()}).values())
        describe(session, start, flops)
        references = session.load_references()
        batch = feed.abstract_batch(start)
        with Working("compiling the step", done="compiled", shown=config.logging.progress and jax.process_index() == 0):
            step = compile_step(state, batch, config.objective, parts.optimizer, references)
    used = lambda state: parts.optimizer.selection.with_adapters(state.model, state.heads)
    setting = Setting(state, batch, used, config.run.seed, session.tokenizer, folder, feed.placer(), rollbacks.batch_of)
    evaluated = evaluations(session, used, references)
    updates = Updates(step, feed, rollbacks, setting)
    replay = lambda stop, hooks: updates(restore_or_start(parts, store, session.mesh), stop, hooks)
    state = updates(state, last, hooks_of(config, store, session.metadata(), evaluated, start, replay, flops))
    return {"run_dir": str(folder), "step": int(state.step)}
