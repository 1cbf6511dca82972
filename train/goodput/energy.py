"""Energy and CO2 of a run: of power that is measured, or else stated, and of factors of the config.

energy = power of the devices x time x PUE; CO2 = energy x factor. So the model cards of Llama 4 count: the power is
that of the device's data sheet "adjusted for power usage efficiency"; location-based emissions use the grid's factor,
and market-based ones that of the contracts
(https://github.com/meta-llama/llama-models/blob/main/models/llama4/MODEL_CARD.md). Hosts, network and storage are not
counted. Nothing is assumed: what is not known is null.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from maverick_jax.accounting.devices import Device
from maverick_jax.settings.section import Section

JOULES_PER_KWH = 3.6e6
RAPL = pathlib.Path("/sys/class/powercap")
"""Counters of the energy of processors: Linux, Documentation/power/powercap/powercap.rst."""


class EnergyConfig(Section):
    """What the devices and the place draw, for estimates of energy and CO2."""

    device_watts: Annotated[float, Field(gt=0)] | None = None
    """Power of a device under load, in watts. null: as measured (nvidia-smi; a CPU's RAPL counters), else that of the
    device's data sheet, else unknown."""
    utilization: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of the stated power that devices draw while the job runs; not used for power that is measured. 1: all of it,
    as model cards count."""
    pue: Annotated[float, Field(ge=1)] = 1.0
    """Power usage effectiveness: energy of the data center over that of its computers. 1: the devices alone."""
    grid_kg_per_kwh: Annotated[float, Field(ge=0)] | None = None
    """Kilograms of CO2 equivalent per kWh of the local grid, for location-based emissions. null: unknown."""
    market_kg_per_kwh: Annotated[float, Field(ge=0)] | None = None
    """Kilograms of CO2 equivalent per kWh under the operator's contracts, for market-based emissions. null: unknown."""

    def stated_watts(self, device: Device | None) -> float | None:
        """Watts of a device while the job runs, by the config or the data sheet; None: unknown."""
        watts = self.device_watts or (device and device.watts)
        return watts * self.utilization if watts else None

    def line(self, kwh: float | None) -> dict[str, float | None]:
        """What `kwh` of the devices are for the place: `energy_kwh`, and `co2_kg` and `co2_kg_market` where their
        factors are given."""
        energy = None if kwh is None else kwh * self.pue
        factors = {"co2_kg": self.grid_kg_per_kwh, "co2_kg_market": self.market_kg_per_kwh}
        emitted = {name: energy and energy * f for name, f in factors.items() if f is not None}
        return {"energy_kwh": energy} | emitted


class EnergyMeter:
    """Sums the energy of a job's devices while this process lives, from the power that was last known."""

    SECONDS = 10.0
    """Time between two measurements."""

    def __init__(
        self, config: EnergyConfig, device: Device | None, *, platform: str, count: int, alone: bool,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        """device: None: none of `accounting.devices`. count: devices of the job. alone: whether it is one process."""
        self._clock, self._count = clock, count
        self._measure: Callable[[], float | None] | None = None
        self.source = ""
        """Where the power is known from; empty: it is unknown."""
        stated = config.stated_watts(device)
        self._watts = None if stated is None else stated * count
        if config.device_watts is not None:
            self.source = "logging.energy.device_watts"
        elif platform == "gpu" and shutil.which("nvidia-smi"):
            self.source, self._measure = "nvidia-smi", self._measured_gpus
        elif platform == "cpu" and alone and (counters := rapl_counters()):
            self.source, self._measure = "RAPL", Rapl(counters, clock).watts
        elif stated is not None:
            self.source = "the data sheet"
        self._kwh, self._lock = 0.0, threading.Lock()
        self._since, self._asked = clock(), -self.SECONDS

    def measure(self) -> None:
        """Asks for the power, if it is time to; may take seconds."""
        if self._measure is None or self._clock() - self._asked < self.SECONDS:
            return
        self._asked = self._clock()
        if (watts := self._measure()) is not None:
            self._add()  # what came before, at the power of before
            self._watts = watts

    def kwh(self) -> float | None:
        """Energy of the devices so far; None: unknown."""
        self._add()
        return None if self._watts is None else self._kwh

    def line(self) -> dict[str, Any]:
        """For the lines of the timeline."""
        return {} if (kwh := self.kwh()) is None else {"kwh": round(kwh, 9)}

    def _add(self) -> None:
        with self._lock:
            now = self._clock()
            if self._watts is not None:
                self._kwh += self._watts * (now - self._since) / JOULES_PER_KWH
            self._since = now

    def _measured_gpus(self) -> float | None:
        """Watts of all GPUs of the job: the mean of those of this host that the job may use, times their number."""
        found = nvidia_watts(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return sum(found) / len(found) * self._count if found else None


def nvidia_watts(visible: str | None = None) -> list[float]:
    """Watts that each GPU of this host draws, by nvidia-smi; empty where it does not say. visible: those to ask for."""
    command = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    if visible and re.fullmatch(r"[\w,-]+", visible):
        command.append(f"--id={visible}")
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        return [float(line) for line in said.splitlines() if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):  # "[N/A]" where a GPU cannot say
        return []


def rapl_counters(root: pathlib.Path = RAPL) -> list[pathlib.Path]:
    """The counters of this machine's processors that may be read; most systems let only root read them."""
    found = sorted(path for path in root.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl:\d+", path.name))
    return [path for path in found if _read(path / "energy_uj") is not None]


class Rapl:
    """Mean power between two readings of counters of microjoules, which begin again at 0 after a largest value."""

    def __init__(self, counters: list[pathlib.Path], clock: Callable[[], float]):
        self._counters, self._clock = counters, clock
        self._last: tuple[float, list[int]] | None = None

    def watts(self) -> float | None:
        """Of all processors since the last call; None at the first one."""
        now, values = self._clock(), [_read(path / "energy_uj") or 0 for path in self._counters]
        last, self._last = self._last, (now, values)
        if last is None or now <= last[0]:
            return None
        used = 0
        for path, before, after in zip(self._counters, last[1], values, strict=True):
            used += after - before if after >= before else after - before + (_read(path / "max_energy_range_uj") or 0)
        return max(0, used) / 1e6 / (now - last[0])


def _read(path: pathlib.Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None
