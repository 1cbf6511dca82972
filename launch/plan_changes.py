"""Find the nearest change of a run that makes it fit in memory."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from maverick_jax.network import Network
from maverick_jax.saved import PRESETS
from maverick_jax.sharding import DATA_AXIS, FSDP_AXIS
from train.config import RunConfig, misfits

MORE_DEVICES = 64
"""Most times as many devices that are tried."""
Change = tuple[int, dict[str, Any]]
"""(Number of steps away from the run as it is, values by config key)."""


def nearest_that_fits(
    config: RunConfig,
    sizes: dict[str, int],
    total_bytes: Callable[[RunConfig, dict[str, int]], int],
    limit: int,
    *,
    more_devices: bool,
) -> dict[str, Any] | None:
    """The first change of `model.remat`, `optimizer.accumulation_steps` and `mesh.fsdp` with which the run fits:
    `changes` by config key, `devices`, and `bytes` per device. None: no change fits.

    Changes on as many devices come first, the nearest first: a step is a stronger `remat`, twice the accumulation, or
    twice the fsdp. Then, with `more_devices`, those on more devices.

    total_bytes: per device, of a run on mesh axes of these sizes.
    """
    meshes = [*_meshes(sizes, more_devices)]
    remats, accumulations = [*_remats(config)], [*_accumulations(config)]
    candidates = sorted(
        ((devices, sum(steps for steps, _ in parts), [keys for _, keys in parts])
         for devices, mesh in meshes for parts in itertools.product(remats, accumulations, [mesh])),
        key=lambda candidate: candidate[:2],
    )  # fmt: skip
    for _, _, parts in candidates:
        changes = {key: value for keys in parts for key, value in keys.items()}
        changed, split = _changed(config, sizes, changes)
        if not misfits(changed, split) and (held := total_bytes(changed, split)) <= limit:
            return {"changes": changes, "devices": math.prod(split.values()), "bytes": held}
    return None


def _remats(config: RunConfig) -> Iterator[Change]:
    """Presets with which layers save less, from most to least."""
    yield 0, {}
    less = [name for name in PRESETS if _saves_less(config.model.model_copy(update={"remat": name}), config.model)]
    yield from ((steps, {"model.remat": name}) for steps, name in enumerate(less, start=1))


def _saves_less(model: Network, than: Network) -> bool:
    pairs = [(model.saved(spec), than.saved(spec)) for spec in set(model.layers)]
    return all(b.has(name) for a, b in pairs for name in a.keep | a.offload) and any(a != b for a, b in pairs)


def _accumulations(config: RunConfig) -> Iterator[Change]:
    first, steps = config.optimizer.accumulation_steps, 0
    while config.data.batch_size % (first << steps) == 0:
        yield steps, {"optimizer.accumulation_steps": first << steps} if steps else {}
        steps += 1


def _meshes(sizes: dict[str, int], more_devices: bool) -> Iterator[tuple[int, Change]]:
    """(How many times as many devices, change of the mesh)."""
    data, fsdp, steps = sizes[DATA_AXIS], sizes[FSDP_AXIS], 0
    yield 1, (0, {})
    while data % 2 == 0:
        data, steps = data // 2, steps + 1
        yield 1, (steps, {f"mesh.{DATA_AXIS}": data, f"mesh.{FSDP_AXIS}": fsdp << steps})
    times = 2
    while more_devices and times <= MORE_DEVICES:
        yield times, (0, {f"mesh.{FSDP_AXIS}": fsdp * times})
        times *= 2


def _changed(config: RunConfig, sizes: dict[str, int], changes: dict[str, Any]) -> tuple[RunConfig, dict[str, int]]:
    """The run with these values, and the sizes of its mesh axes."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    copies = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return config.model_copy(update=copies), sizes | sections.get("mesh", {})
