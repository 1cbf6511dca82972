"""Memory, peak FLOP/s and bandwidths of accelerators, and the rates that programs reach."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Literal

MATRIX_SHARE, MEMORY_SHARE, WIRE_SHARE = 0.66, 0.83, 0.85
"""Fractions of a data sheet's FLOP/s and bytes/s that programs reach: measured on an H200, 650 of 989 TFLOP/s in matrix
products of a step and 4.0 of 4.8 TB/s; 380 of 450 GB/s over NVLink."""
LINK_STEP, NETWORK_STEP = 1.9e-6, 4e-6
"""Seconds of a step of a ring beside its bytes, between neighbors and between hosts: those of NCCL's own model
(src/graph/tuning.cc, protocol LL128)."""

Pattern = Literal["ring", "reduce", "exchange", "shift"]
"""How a collective sends: around a ring; around a ring or, where that is faster, along a tree; from each device to each
other one; from each to one other."""
Spans = tuple[tuple[int, int], ...]
"""A group of devices: along each of its axes, their number and the distance of neighbors in the order of the mesh, in
which the devices of a host are together."""
Hardware = Literal["a100_40", "a100_80", "h100", "h200", "b200", "v5e", "v5p", "v6e"]


@dataclasses.dataclass(frozen=True)
class Device:
    """A kind of accelerator, from its vendor's data sheet."""

    memory_gb: float
    """10^9 bytes; of a TPU v5p or v6e, those that its compiler lets a program use (95.74 and 31.25 GiB)."""
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
    host: float = 64e9
    """Bytes/s each way between the device's memory and its host's: those of PCIe 5.0 with 16 lanes unless given."""
    watts: float | None = None
    """Largest power of the device with its memory (TDP), of the SXM form for GPUs; None: not published, as for TPUs."""

    @property
    def platform(self) -> str:
        """JAX's name of the platform."""
        return "gpu" if self.group else "tpu"

    @property
    def matrix_rate(self) -> float:
        """FLOP/s that matrix products reach."""
        return self.peak_flops * MATRIX_SHARE

    @property
    def memory_rate(self) -> float:
        """Bytes/s that memory traffic reaches."""
        return self.bandwidth * MEMORY_SHARE

    @property
    def link_rate(self) -> float:
        """Bytes/s that a device reaches over its links."""
        return self.link * WIRE_SHARE

    @property
    def network_rate(self) -> float:
        """Bytes/s that a device reaches over the network."""
        return self.network * WIRE_SHARE

    @property
    def host_rate(self) -> float:
        """Bytes/s that copies to or from the host reach."""
        return self.host * WIRE_SHARE

    def near(self, spans: Spans) -> int:
        """How many of a group's devices its links join, itself included."""
        if not self.group:
            return math.prod(size for size, _ in spans)
        return math.prod(max(1, min(size, self.group // apart)) for size, apart in spans)

    def seconds_to_send(self, sent: float, count: int, near: int, pattern: Pattern) -> float:
        """Of a collective of `count` devices in which each sends `sent` bytes; links join `near` of them.

        The rings of a group that has several devices on a host go through the network cards of all of them; otherwise
        each device uses its own card.
        """
        hosts = count // near
        if pattern in ("ring", "reduce"):
            rate = self.link_rate if hosts == 1 else min(self.link_rate, near * self.network_rate)
            steps = (count - hosts) * LINK_STEP + (hosts - 1) * NETWORK_STEP
            levels = 2 * (math.ceil(math.log2(near)) * LINK_STEP + math.ceil(math.log2(hosts)) * NETWORK_STEP)
            return sent / rate + (min(2 * steps, levels) if pattern == "reduce" else steps)
        if hosts == 1:
            return sent / self.link_rate + LINK_STEP
        outside = (count - near) / (count - 1) if pattern == "exchange" else 1.0
        return sent * outside / self.network_rate + NETWORK_STEP


def spans(axes: Iterable[str], sizes: Mapping[str, int]) -> Spans:
    """The devices along mesh axes."""
    found, apart = [], 1
    for axis in reversed([*sizes]):
        if axis in axes and sizes[axis] > 1:
            found.append((sizes[axis], apart))
        apart *= sizes[axis]
    return tuple(found)


DEVICES: dict[str, Device] = {
    "a100_40": Device(40, 312e12, ("a100-sxm4-40gb", "a100-pcie-40gb"), 1.555e12, 300e9, 25e9, 8, 32e9, 400),
    "a100_80": Device(80, 312e12, ("a100",), 2.039e12, 300e9, 25e9, 8, 32e9, 400),
    "h100": Device(80, 989.4e12, ("h100",), 3.35e12, 450e9, 50e9, 8, watts=700),
    "h200": Device(141, 989.4e12, ("h200",), 4.8e12, 450e9, 50e9, 8, watts=700),
    "b200": Device(180, 2250e12, ("b200",), 7.7e12, 900e9, 50e9, 8, watts=1000),
    "v5e": Device(16, 197e12, ("tpu v5 lite", "tpu v5e"), 0.819e12, 90e9, 3e9, 0, 32e9),
    "v5p": Device(102.8, 459e12, ("tpu v5",), 2.765e12, 180e9, 6e9, 0, 32e9),
    "v6e": Device(33.5, 918e12, ("tpu v6",), 1.64e12, 180e9, 6e9, 0, 32e9),
}


def device_of(kind: str) -> Device | None:
    """The entry for a JAX `device_kind`; None if the table has none (a CPU)."""
    matches = (device for device in DEVICES.values() if any(k in kind.lower() for k in device.kinds))
    return next(matches, None)
