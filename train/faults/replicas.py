"""Finds silent data corruption: compares the parameters of devices that should hold the same ones.

Each device sums the bits of its own shards, and hosts compare the sums. If some differ, the updates since the newest
checkpoint are done again, which tells a transient fault from a persistent one, and the run ends.
"""

import collections
import dataclasses
import logging
import platform
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from maverick_jax import events
from maverick_jax.checkpoint.checksum import sums_by_device
from maverick_jax.errors import SilentCorruption
from train.loop import Hook
from train.metrics_writer import MetricsWriter

log = logging.getLogger(__name__)

Arrays = dict[str, jax.Array]
_NAME_BYTES = 64


@dataclasses.dataclass(frozen=True)
class Difference:
    """Arrays of which devices hold different values."""

    arrays: tuple[str, ...]
    suspects: tuple[int, ...]
    """Ids of the devices that are outvoted; of all that hold such an array if there is no majority."""
    outvoted: bool
    """Whether there is a majority for each array."""


def difference(arrays: Arrays, sums: dict[int, np.ndarray]) -> Difference | None:
    """What differs between devices that should hold the same shard; None: nothing. `sums`: of `sums_by_device`."""
    names, suspects, outvoted = [], set(), True
    for at, (name, array) in enumerate(arrays.items()):
        for devices in _replicas(array):
            votes = collections.Counter(tuple(sums[device][at].tolist()) for device in devices)
            if len(votes) == 1:
                continue
            (most, count), *_ = votes.most_common()
            majority = 2 * count > len(devices)
            names.append(name)
            suspects |= {device for device in devices if not majority or tuple(sums[device][at].tolist()) != most}
            outvoted &= majority
    return Difference(tuple(dict.fromkeys(names)), tuple(sorted(suspects)), outvoted) if names else None


def _replicas(array: jax.Array) -> list[list[int]]:
    """Ids of the devices that hold the same shard, for each shard."""
    found: dict[str, list[int]] = {}
    for device, index in array.sharding.devices_indices_map(array.shape).items():
        found.setdefault(str(index), []).append(device.id)
    return list(found.values())


class ReplicaCheck(Hook):
    """Compares every `every` updates and before each save; raises SilentCorruption, naming devices and hosts."""

    def __init__(
        self,
        arrays_of: Callable[[Any], Arrays],
        writer: MetricsWriter,
        *,
        every: int,
        save: Hook,
        replay: Callable[[int, Sequence[Hook]], Any],
        watched: Sequence[Hook] = (),
    ):
        """arrays_of: the arrays of a state to compare. replay: (update, hooks) -> the state after that update, done
        again from the newest checkpoint. watched: hooks that get the metrics of the updates that are done again."""
        self.every, self._save, self._writer, self._watched = every, save, writer, watched
        self._arrays_of, self._replay = arrays_of, replay
        self._replicated = True

    def due(self, step: int) -> bool:
        return self._replicated and (super().due(step) or self._save.due(step))

    def on_state(self, step: int, state) -> None:
        arrays = self._arrays_of(state)
        if all(len(devices) == 1 for array in arrays.values() for devices in _replicas(array)):
            log.warning("guard.compare_every: on this mesh no two devices hold the same parameters to compare")
            self._replicated = False
            return
        sums = sums_by_device(arrays)
        if (found := difference(arrays, sums)) is None:
            return
        log.error("step %d: %s; doing the updates since the last checkpoint again", step, self._said(found, arrays))
        for array in jax.tree.leaves(state):
            array.delete()  # there may be no room for a second state
        again = self._arrays_of(self._replay(step, [_Relayed(self._watched)]))
        sums_again = sums_by_device(again)
        self._end(step, _narrowed(found, again, sums, sums_again), difference(again, sums_again), again)

    def _end(self, step: int, found: Difference, second: Difference | None, arrays: Arrays) -> None:
        fault = "transient" if second is None else "persistent"
        hosts = _hosts()
        devices = next(iter(arrays.values())).sharding.mesh.devices.flat
        of = {device.id: hosts[device.process_index] for device in devices}
        named = {
            "step": step,
            "devices": list(found.suspects),
            "hosts": sorted({of[device] for device in found.suspects}),
            "fault": fault,
        }
        self._writer.write({**named, "replicas_differ": list(found.arrays)})
        if jax.process_index() == 0:
            events.record("replicas_differ", **named)
        then = "they were equal" if second is None else f"{self._said(second, arrays)} again"
        raise SilentCorruption(
            f"step {step}: {self._said(found, arrays)}. When the updates since the last checkpoint were done again, "
            f"{then}: a {fault} fault. Checkpoints were compared before they were saved. Take the host out, then start "
            "the run again"
        )

    def _said(self, found: Difference, arrays: Arrays) -> str:
        hosts = _hosts()
        sharding = next(iter(arrays.values())).sharding
        places = {device.id: place for place, device in np.ndenumerate(sharding.mesh.devices)}
        axes = sharding.mesh.axis_names
        said = []
        for device in sharding.mesh.devices.flat:
            if device.id in found.suspects:
                place = zip(axes, places[device.id], sharding.mesh.devices.shape, strict=True)
                where = ", ".join(f"{axis} {at}" for axis, at, size in place if size > 1)
                said.append(f"device {device.id} (replica {where}; process {device.process_index}, host "
                            f"{hosts[device.process_index]})")  # fmt: skip
        of = f"{len(found.arrays)} array(s), such as {found.arrays[0]}"
        if not found.outvoted:
            return f"these devices hold different values of {of}, with no majority: {'; '.join(said)}"
        return f"{'; '.join(said)} holds other values of {of}, than the other replicas"


def _narrowed(
    found: Difference, arrays: Arrays, sums: dict[int, np.ndarray], again: dict[int, np.ndarray]
) -> Difference:
    """Without a majority: the suspects whose first values are not those of the second time, if others' are."""
    right = {device for device in found.suspects if (sums[device] == again[device]).all()}
    if found.outvoted or not right or difference(arrays, again) is not None:
        return found
    wrong = tuple(device for device in found.suspects if device not in right)
    return dataclasses.replace(found, suspects=wrong, outvoted=True)


def _hosts() -> list[str]:
    """The name of each process's host."""
    name = platform.node()
    if jax.process_count() == 1:
        return [name]
    mine = np.frombuffer(name.encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0"), np.uint8)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in multihost_utils.process_allgather(mine)]


class _Relayed(Hook):
    """Gives others the metrics of updates, and does not close them."""

    def __init__(self, others: Sequence[Hook]):
        self._others = others

    def on_metrics(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
        for other in self._others:
            other.on_metrics(step, metrics, seconds)
