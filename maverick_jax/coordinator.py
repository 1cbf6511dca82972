"""Values that the processes of a job leave with its coordinator. No device takes part, so threads may use it."""

import contextlib
from typing import Any

import jax
from jax._src.distributed import global_state  # its key-value store has no public name


def publish(key: str, value: str) -> None:
    """Leaves a value with the coordinator of the job, in the place of the former one. The monitor of the processes
    handles a coordinator that does not answer."""
    coordinator: Any = global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        coordinator.key_value_set(f"maverick/{key}", value, allow_overwrite=True)


def published(topic: str) -> dict[str, str]:
    """The values under `topic/` that processes have left with the coordinator, by the rest of their keys."""
    coordinator: Any = global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        found = coordinator.key_value_dir_get(f"maverick/{topic}/")
        return {key.rpartition("/")[2]: value for key, value in found}
    return {}
