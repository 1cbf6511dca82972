"""Stops a run in order when it is asked to: SIGTERM of a scheduler, Ctrl-C of a user."""

import os
import signal

import jax
from jax.experimental import multihost_utils

from maverick_jax.errors import Preempted
from train.hooks import Checkpoint
from train.loop import Hook


class Preemption(Hook):
    """On SIGTERM, and on the first SIGINT: finishes the update, saves, and raises Preempted.

    One process has handlers of its own. In a job of several, the signal may reach any of them: JAX's coordination
    service lets all agree on the update after which they stop, which needs JAX's own SIGTERM handler to stay in place.
    """

    phase = "save"

    def __init__(self, checkpoint: Checkpoint):
        """Installs the handlers, in the main thread; `close` restores the former ones."""
        self._checkpoint = checkpoint
        self._signal: int | None = None
        self._alone = jax.process_count() == 1
        if self._alone:
            self._former = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        else:
            self._former = {signal.SIGINT: signal.signal(signal.SIGINT, self._forward)}

    def due(self, step: int) -> bool:
        return self._signal is not None if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def on_state(self, step: int, state) -> None:
        if step == self._checkpoint.last_step:
            return  # the run is complete and saved
        if not self._checkpoint.due(step):
            self._checkpoint.on_state(step, state)
        self._checkpoint.store.wait()
        raise Preempted(f"stopped as asked after step {step}, which is saved; the same command goes on from there")

    def close(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self._signal = number
        self._restore_interrupt()

    def _forward(self, number: int, frame) -> None:
        self._restore_interrupt()
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore_interrupt(self) -> None:
        """A second Ctrl-C ends the process at once."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
