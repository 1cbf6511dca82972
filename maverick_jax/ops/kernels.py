"""The choice among kernels that compute the same thing: the first that applies, announced with the reasons.

A fast path is a `Kernel`. It says why it does not apply to a case, such as shapes, dtype and mask; the last kernel of a
list is the slow or general one and always applies. The choice is made while a program is traced, from the platform of
the mesh in use: no setting of a run says which kernel it gets.
"""

import contextlib
import contextvars
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from maverick_jax.target import traced_platform

C = TypeVar("C")
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Kernel(Generic[C]):
    """One way to compute an operation."""

    name: str
    run: Callable[..., Any]
    """Computes the operation; every kernel of an operation has the same signature."""
    why_not: Callable[[C], str | None] = lambda case: None
    """Why it cannot compute a case, as the end of a sentence; None: it can."""
    platforms: tuple[str, ...] = ()
    """Where it runs; empty: everywhere. On other platforms it is no candidate and no reason is given."""


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """Which kernel a trace uses for one kind of case."""

    operation: str
    kernel: str
    refused: tuple[str, ...]
    """The kernels of this platform that come before it, each with its reason."""

    def __str__(self) -> str:
        return f"{self.operation}: {self.kernel}" + "".join(f"; not {reason}" for reason in self.refused)


_announced: set[KernelChoice] = set()
_recorded: contextvars.ContextVar[list[KernelChoice] | None] = contextvars.ContextVar("choices", default=None)


def choose(operation: str, kernels: Sequence[Kernel[C]], case: C) -> Kernel[C]:
    """The first of `kernels` that applies to `case` on the platform that is traced for. Each distinct choice is logged
    once in a process, as a warning if a kernel of this platform was refused. Raises ValueError if none applies."""
    platform, refused = traced_platform(), []
    for kernel in kernels:
        if kernel.platforms and platform not in kernel.platforms:
            continue
        if (reason := kernel.why_not(case)) is None:
            _announce(KernelChoice(operation, kernel.name, tuple(refused)), kernel)
            return kernel
        refused.append(f"{kernel.name}, {reason}")
    raise ValueError(f"no kernel computes {operation} of {case}: {'; '.join(refused)}")


def _announce(choice: KernelChoice, kernel: Kernel) -> None:
    """A kernel that runs everywhere is no news where no other exists."""
    if (recorded := _recorded.get()) is not None and choice not in recorded:
        recorded.append(choice)
    if choice in _announced:
        return
    _announced.add(choice)
    usual = logging.INFO if kernel.platforms else logging.DEBUG
    log.log(logging.WARNING if choice.refused else usual, "%s", choice)


@contextlib.contextmanager
def recorded() -> Iterator[list[KernelChoice]]:
    """Collects the distinct choices of the programs that are traced meanwhile."""
    found: list[KernelChoice] = []
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)
