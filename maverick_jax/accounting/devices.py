"""Memory, peak FLOP/s and bandwidths of accelerators."""

import dataclasses
from typing import Literal

Hardware = Literal["a100_40", "a100_80", "h100", "h200", "b200", "v5e", "v5p", "v6e"]


@dataclasses.dataclass(frozen=True)
class Device:
    """A kind of accelerator, from its vendor's data sheet."""

    memory_gb: float
    """10^9 bytes."""
    peak_flops: float
    """Dense bfloat16 FLOP/s."""
    kinds: tuple[str, ...]
    """Strings that JAX's `device_kind` contains, in lower case."""
    bandwidth: float
    """Bytes/s of its memory."""
    link: float
    """Bytes/s that it sends to its neighbors: over NVLink, or over a TPU's links along one axis."""
    network: float
    """Bytes/s that it sends to other hosts of GPUs, or other TPU slices."""
    group: int
    """Number of devices that `link` joins; 0: all of a slice."""

    @property
    def platform(self) -> str:
        """JAX's name of the platform."""
        return "gpu" if self.group else "tpu"


DEVICES: dict[str, Device] = {
    "a100_40": Device(40, 312e12, ("a100-sxm4-40gb", "a100-pcie-40gb"), 1.555e12, 300e9, 25e9, 8),
    "a100_80": Device(80, 312e12, ("a100",), 2.039e12, 300e9, 25e9, 8),
    "h100": Device(80, 989.4e12, ("h100",), 3.35e12, 450e9, 50e9, 8),
    "h200": Device(141, 989.4e12, ("h200",), 4.8e12, 450e9, 50e9, 8),
    "b200": Device(180, 2250e12, ("b200",), 7.7e12, 900e9, 50e9, 8),
    "v5e": Device(16, 197e12, ("tpu v5 lite", "tpu v5e"), 0.819e12, 90e9, 3e9, 0),
    "v5p": Device(95, 459e12, ("tpu v5",), 2.765e12, 180e9, 6e9, 0),
    "v6e": Device(32, 918e12, ("tpu v6",), 1.64e12, 180e9, 6e9, 0),
}


def device_of(kind: str) -> Device | None:
    """The entry for a JAX `device_kind`; None if the table has none (a CPU)."""
    matches = (device for device in DEVICES.values() if any(k in kind.lower() for k in device.kinds))
    return next(matches, None)
