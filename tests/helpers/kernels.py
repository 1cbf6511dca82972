"""Runs with one kernel, wherever it is slow or interpreted."""

import dataclasses

from maverick_jax.ops import attention
from maverick_jax.ops.kernels import Kernel


def attention_by(kernel: Kernel, monkeypatch) -> None:
    """Programs that are traced from here on compute attention with `kernel` alone, on this platform too."""
    anywhere = dataclasses.replace(kernel, platforms=(), why_not=lambda case: None)
    monkeypatch.setattr(attention, "KERNELS", (anywhere,))
