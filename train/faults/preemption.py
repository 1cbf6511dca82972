"""Stops a run in order when it is asked to: SIGTERM of a scheduler, Ctrl-C of a user."""

import contextlib
import logging
import signal
import threading

import jax
from jax.experimental import multihost_utils

from maverick_jax.errors import Preempted
from maverick_jax.progress import duration
from train.faults.at_once import SAVED_STAYS, leave_at, leave_now
from train.faults.processes import stops_all
from train.faults.signals import answers, pass_on
from train.hooks import Checkpoint
from train.loop import Hook

log = logging.getLogger(__name__)


class Preemption(Hook):
    """On SIGTERM, and on the first SIGINT: finishes the update, saves, and raises Preempted.

    In a job of several processes the signal may reach any of them: JAX's coordination service lets all agree on the
    update after which they stop. A second signal ends the process at once, and so does the deadline, past which a stuck
    update or a slow save is given up; the others of the job follow. Checkpoints that are complete stay.
    """

    phase = "save"

    def __init__(self, checkpoint: Checkpoint, *, within: float = 0.0):
        """Answers signals from now on, in the main thread; `close` ends that. within: seconds from the first signal to
        the deadline; 0: none."""
        self._checkpoint, self._within = checkpoint, within
        self._asked = threading.Event()
        self._alone = jax.process_count() == 1
        self._over = threading.Event()
        self._answering = contextlib.ExitStack()
        self._answering.enter_context(answers(self._answer))

    def due(self, step: int) -> bool:
        return self._asked.is_set() if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def on_state(self, step: int, state) -> None:
        if step == self._checkpoint.last_step:
            return  # the run is complete and saved
        if not self._checkpoint.due(step):
            self._checkpoint.on_state(step, state)
        self._checkpoint.store.wait()
        self._checkpoint.store.hurry()
        raise Preempted(f"stopped as asked after step {step}, which is saved; the same command goes on from there")

    def close(self) -> None:
        try:
            self._checkpoint.store.wait(read_back=not self._asked.is_set())  # no other save cuts the last reading short
        finally:
            self._over.set()
            self._answering.close()

    def _answer(self, number: int) -> None:
        """In a thread of its own."""
        if self._asked.is_set():
            leave_at(number, f"asked a second time; {SAVED_STAYS}")
        self._asked.set()
        log.warning("asked to stop (%s): finishing the update, then saving", signal.Signals(number).name)
        if self._within:
            threading.Thread(target=self._leave_at_deadline, name="deadline", daemon=True).start()
        if not self._alone:
            pass_on(signal.SIGTERM)

    def _leave_at_deadline(self) -> None:
        if not self._over.wait(self._within):
            stops_all()
            leave_now(
                Preempted.exit_code,
                f"asked to stop {duration(self._within)} ago (guard.stop_within), and not done: {SAVED_STAYS}",
            )
