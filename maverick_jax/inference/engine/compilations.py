"""Counts the programs that a thread compiles."""

import threading

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_counted = threading.local()


def compilations_here() -> int:
    """Programs that this thread has compiled since it first asked. A program from the cache on disk counts too."""
    if not hasattr(_counted, "number"):
        _counted.number = 0
    return _counted.number


def _on_event(event: str, duration: float, **details) -> None:
    if event == _EVENT and hasattr(_counted, "number"):
        _counted.number += 1


jax.monitoring.register_event_duration_secs_listener(_on_event)
