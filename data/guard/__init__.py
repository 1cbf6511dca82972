"""Guards: what watches the calls of an agent before they are carried out (docs/guides/alignment.md)."""

from data.guard.base import Guard, Risk, Ruling
from data.guard.gate import Gate, GateVerdict
from data.guard.monitor import PolicyMonitor

__all__ = ["Gate", "GateVerdict", "Guard", "PolicyMonitor", "Risk", "Ruling"]
