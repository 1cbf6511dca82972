"""Goes back to a good checkpoint after too many bad updates in a row, and leaves out the data that they were to learn
from.

The batches of a run have numbers, from 0; without roll-backs update `n` learns from batch `n - 1`. A roll-back leaves
out the batches of the updates after the checkpoint up to the last bad one. So the batch of an update is a function of
the config and of the roll-backs before it, which `rollbacks.json` in the run directory records and every checkpoint
repeats: a run that is killed and resumed learns from the same batches.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import jax
import pydantic
from jax.experimental import multihost_utils
from pydantic import Field

from maverick_jax import events
from maverick_jax.checkpoint.store import CheckpointConfig, CheckpointStore
from maverick_jax.errors import InputError, MaverickError
from maverick_jax.files import write_atomically
from maverick_jax.settings.section import Section

log = logging.getLogger(__name__)

FILE = "rollbacks.json"
ROLLBACKS = "rollbacks"
"""Key of the roll-backs in the metadata of a checkpoint."""
Count = Annotated[int, Field(ge=0)]


class RollbackConfig(Section):
    """When a run goes back to its last good checkpoint."""

    after: Annotated[int, Field(ge=1)] = 3
    """Number of refused updates in a row after which it does."""
    times: Annotated[int, Field(ge=1)] = 3
    """How often it does. The next time ends the run (exit code 79)."""


class Rollback(Section):
    """A roll-back that was carried out."""

    at: Count
    """The last bad update."""
    to: Count
    """The update after which the run went on; 0: its start."""
    batches: tuple[Count, Count]
    """The first and the last batch that are left out."""


@dataclasses.dataclass(frozen=True)
class Rollbacks:
    """The roll-backs of a run, in the order in which they were carried out."""

    done: tuple[Rollback, ...] = ()
    since: int = 0
    """The update before the first one of a stage. Roll-backs of earlier stages leave out none of its batches."""

    @classmethod
    def at(cls, store: CheckpointStore, step: int, since: int = 0) -> "Rollbacks":
        """Those of the run whose checkpoints `store` holds, as far as it is known after update `step`. Raises
        InputError if their record cannot be read, or is not that of the checkpoint of `step`."""
        path, saved = store.directory.parent / FILE, ()
        if step in store.steps():
            saved = _parsed(store.meta(step).get(ROLLBACKS, []))
        try:
            found = _parsed(json.loads(path.read_bytes()))
        except FileNotFoundError:
            found = ()
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); restore it from a copy") from None
        if found[: len(saved)] != saved[: len(found)]:
            raise InputError(f"{path}: differs from what the checkpoint of step {step} records; restore it from a copy")
        return cls(max(found, saved, key=len), since)

    def record(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [one.model_dump(mode="json") for one in self.done]

    @property
    def left_out(self) -> list[tuple[int, int]]:
        """The first and the last of the batches that are left out, of each gap, in order."""
        gaps: list[tuple[int, int]] = []
        for first, last in sorted(one.batches for one in self.done if one.at > self.since):
            if gaps and first <= gaps[-1][1] + 1:
                gaps[-1] = gaps[-1][0], max(last, gaps[-1][1])
            else:
                gaps.append((first, last))
        return gaps

    def batch_of(self, update: int) -> int:
        """The number of the batch that an update learns from."""
        number = update - 1
        for first, last in self.left_out:
            number += last - first + 1 if number >= first else 0
        return number

    def pieces(self, start: int, stop: int) -> Iterator[range]:
        """The batches of the updates `start + 1` to `stop`, as ranges without gaps."""
        while start < stop:
            first = self.batch_of(start + 1)
            here = min([gap - first for gap, _ in self.left_out if gap > first], default=stop - start)
            found = range(first, first + min(here, stop - start))
            yield found
            start += len(found)

    def after(self, first: int, last: int, steps: Sequence[int]) -> "Rollbacks":
        """With one more, because the updates `first` to `last` were refused: to the newest of the checkpoints `steps`
        that is older. If all are newer, to the oldest: refused updates have left its parameters as they were."""
        before = [step for step in steps if step < first]
        to = max(before) if before else min((step for step in steps if step < last), default=0)
        batches = self.batch_of(to + 1), self.batch_of(last)
        return Rollbacks((*self.done, Rollback(at=last, to=to, batches=batches)), self.since)


NONE = Rollbacks()


class GoBack(MaverickError):
    """The updates `first` to `last` were refused; the run goes back to a checkpoint before them."""

    def __init__(self, first: int, last: int, before: Rollbacks):
        super().__init__(f"the updates {first} to {last} were refused")
        self.first, self.last, self.before = first, last, before


@contextlib.contextmanager
def goes_back(checkpoints: pathlib.Path, config: CheckpointConfig | None = None) -> Iterator[None]:
    """When GoBack leaves the block, newer checkpoints than the one to go back to are deleted, the roll-back is
    recorded, and the caller goes on after the block, to train again. All processes of a job do this. config: that of
    the checkpoints."""
    try:
        yield
    except GoBack as error:
        _carry_out(error.first, error.last, error.before, CheckpointStore(checkpoints, config))


def _carry_out(first: int, last: int, before: Rollbacks, store: CheckpointStore) -> None:
    """A process that dies in the middle leaves older checkpoints, from which the same roll-back follows again."""
    found = before.after(first, last, store.agreed_known_steps())
    one = found.done[-1]
    if jax.process_index() == 0:
        log.warning(
            "rolling back from step %d to step %d: updates %d to %d were refused; batches %d to %d of the data are "
            "left out",
            *(last, one.to, first, last, *one.batches),
        )
    store.delete_after(one.to)
    if jax.process_index() == 0:
        events.record("rolled_back", step=last, to=one.to, batches=list(one.batches))
        write_atomically(store.directory.parent / FILE, json.dumps(found.record(), indent=1).encode())
    store.close()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("rolled back")


_LIST = pydantic.TypeAdapter(list[Rollback])


def _parsed(record: object) -> tuple[Rollback, ...]:
    return tuple(_LIST.validate_json(json.dumps(record)))
