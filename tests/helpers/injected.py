"""A plugin that makes faults in a real run. The environment variable INJECT says which, as JSON:

phase, at     where: `start`, `compile`, `restore`, or `step`, `save`, `evaluation` of update `at`
rank          of which process; null: of all
folder        `reached-<rank>` appears there at that moment, and the process sleeps until there is a file `go`. With
              `guard.hangs`, every phase is limited to `LIMIT` seconds from then on, and none before, however busy the
              machine is
flip          a device, in whose copy of the last norm a bit is flipped after update `at`, instead
seconds       the batches of update `at` and those after it come so much later, instead
error         update `at` raises, instead
clock         seconds by which the machine's clock is wrong
"""

import functools
import json
import os
import pathlib
import time
from typing import Any

import jax

ANYWHERE = {
    "phase": "",
    "at": 0,
    "rank": None,
    "folder": "",
    "flip": None,
    "seconds": 0.0,
    "error": False,
    "clock": 0.0,
}
FAULT: dict[str, Any] = ANYWHERE | json.loads(os.environ.get("INJECT", "{}"))


LIMIT = 2.0


def here(phase: str, step: int = 0) -> bool:
    mine = FAULT["rank"] is None or FAULT["rank"] == jax.process_index()
    return mine and FAULT["phase"] == phase and (not FAULT["at"] or FAULT["at"] == step)


def hold(phase: str, step: int = 0) -> None:
    """Sleeps at the moment that was asked for."""
    if here(phase, step) and FAULT["folder"]:
        folder = pathlib.Path(FAULT["folder"])
        (folder / f"reached-{jax.process_index()}").touch()
        while not (folder / "go").exists():
            time.sleep(0.02)


def held(function, phase: str, step_of=lambda *_: 0):
    @functools.wraps(function)
    def wrapped(*arguments, **named):
        hold(phase, step_of(*arguments))
        return function(*arguments, **named)

    return wrapped


def faulty(compile_step):
    def compiled(*arguments):
        hold("compile")
        step = compile_step(*arguments)

        def one(state, batch):
            number = int(state.step) + 1
            hold("step", number)
            state, metrics = step(state, batch)
            if FAULT["phase"] == "step" and FAULT["at"] and number >= FAULT["at"]:
                state = harmed(state, number)
            return state, metrics

        return one if FAULT["phase"] == "step" else step

    return compiled


def harmed(state, number: int):
    if FAULT["error"] and here("step", number):
        raise ValueError("an injected bug")
    if FAULT["flip"] is not None and here("step", number):
        from tests.helpers.faults import with_flipped_bit

        FAULT["at"] = 1 << 40  # once; the rounding of this model would undo a lower bit
        norm = state.model.norm
        norm[...] = with_flipped_bit(norm[...], jax.devices()[FAULT["flip"]].id, 22)
    return state


def late(batch_source):
    """Sleeps where a host is slow by itself: in a call of the step it would seem to wait for devices."""

    def opened(*arguments):
        source = batch_source(*arguments)
        asked = source.__call__

        class Late(type(source)):
            def __call__(self, update, state):
                if update >= FAULT["at"] and FAULT["rank"] in (None, jax.process_index()):
                    time.sleep(FAULT["seconds"])
                return asked(update, state)

        source.__class__ = Late
        return source

    return opened


def limited(budget):
    def wrapped(config, phase, updates):
        reached = any(pathlib.Path(FAULT["folder"]).glob("reached-*"))
        return budget(config, phase, updates)[0], LIMIT if reached else 0

    return wrapped


def turn_clock(seconds: float) -> None:
    from maverick_jax.checkpoint import lease

    true = time.time
    time.time = lambda: true() + seconds
    lease.Clock.__init__.__defaults__ = (time.time, time.sleep)


def inject() -> None:
    from maverick_jax.checkpoint.store import CheckpointStore
    from train import run, updates
    from train.faults.hangs import HangsConfig
    from train.hooks import Evaluation

    if FAULT["clock"]:
        turn_clock(FAULT["clock"])
    if FAULT["folder"]:
        HangsConfig.budget = limited(HangsConfig.budget)
    if FAULT["seconds"]:
        updates.batch_source = late(updates.batch_source)
    run.compile_step = faulty(run.compile_step)
    run.restore_or_start = held(run.restore_or_start, "restore")
    run.Session.open = held(run.Session.open, "start")
    CheckpointStore.save = held(CheckpointStore.save, "save", lambda store, step, *_: step)
    Evaluation.on_state = held(Evaluation.on_state, "evaluation", lambda hook, step, *_: step)


if FAULT != ANYWHERE:
    inject()
