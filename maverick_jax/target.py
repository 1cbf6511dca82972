"""The devices that programs are compiled for: those of this job, or those of a topology that is not at hand.

A program follows from its target alone. While it is traced, the platform is that of the mesh in use
(`traced_platform`), so a machine without accelerators compiles the same program as one with them.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path

import jax


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices of one kind."""

    devices: Sequence
    """All JAX devices of the job, in mesh order: those of one host are neighbors."""
    attached: bool = True
    """Whether programs can run on them; the devices of a topology can only be compiled for."""

    @classmethod
    def local(cls) -> "Target":
        """The devices of this job."""
        return cls(tuple(jax.devices()))

    @classmethod
    def one_device(cls) -> "Target":
        """The first device of this process."""
        return cls(tuple(jax.local_devices()[:1]))

    @property
    def count(self) -> int:
        return len(self.devices)

    @property
    def platform(self) -> str:
        """`cpu`, `gpu` or `tpu`."""
        return self.devices[0].platform

    @property
    def kind(self) -> str:
        """JAX's name of the device, such as `NVIDIA H200`."""
        return self.devices[0].device_kind

    @property
    def memories(self) -> frozenset[str]:
        """JAX's names of the memories that a device of this process can use, such as `device` and `pinned_host`."""
        mine = next(d for d in self.devices if d.process_index == jax.process_index())
        return frozenset(memory.kind for memory in mine.addressable_memories())


def traced_platform() -> str:
    """The platform of the mesh in use, inside a trace or outside: `cpu`, `gpu` or `tpu`. Without a mesh, the platform
    for which JAX compiles by default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def traced_kind() -> str:
    """JAX's name of the devices of the mesh in use. Without a mesh, that of JAX's default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.local_devices()[0].device_kind if device is None else device.device_kind


def traced_core_count() -> int:
    """Number of cores, on GPUs multiprocessors, of each device of the mesh in use. Without a mesh, of JAX's default
    device. Raises ValueError if it is not known."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = getattr(jax.local_devices()[0], "core_count", None) if device is None else device.num_cores
    if found is None:
        raise ValueError(f"the number of cores of {traced_kind()} is not known")
    return found


_CAPABILITIES = {"h100": (9, 0), "h200": (9, 0), "b200": (10, 0), "b300": (10, 3)}
"""Of GPUs that are compiled for without being at hand, by a part of their name."""


def traced_capability() -> tuple[int, int] | None:
    """The CUDA compute capability of the devices of the mesh in use, such as (9, 0); None: not known, or no GPU."""
    kind = traced_kind()
    for device in jax.local_devices():
        if device.device_kind == kind and (found := getattr(device, "compute_capability", None)):
            major, minor = found.split(".")
            return int(major), int(minor)
    return next((found for part, found in _CAPABILITIES.items() if part in kind.lower()), None)


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this machine's processors multiply bfloat16 natively: two to four times the float32 rate."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags[1].split())
