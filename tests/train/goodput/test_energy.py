"""Energy and CO2: stated or measured power, and null where it is not known."""

import stat

import pytest

from maverick_jax.accounting.devices import DEVICES
from train.goodput import energy
from train.goodput.energy import EnergyConfig, EnergyMeter, Rapl, nvidia_watts, rapl_counters

HOUR = 3600.0


class Seconds:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(energy.shutil, "which", lambda name: None)
    monkeypatch.setattr(energy, "rapl_counters", list)
    return Seconds()


def meter(clock, config=None, device="h200", platform="gpu", count=8, alone=True) -> EnergyMeter:
    found = device and DEVICES[device]
    return EnergyMeter(config or EnergyConfig(), found, platform=platform, count=count, alone=alone, clock=clock)


def test_stated_power_times_time(clock):
    found = meter(clock)
    clock.now = HOUR
    assert found.kwh() == pytest.approx(8 * 0.7) and found.source == "the data sheet"
    assert EnergyConfig(pue=1.1, grid_kg_per_kwh=0.4, market_kg_per_kwh=0.0).line(found.kwh()) == {
        "energy_kwh": pytest.approx(5.6 * 1.1),
        "co2_kg": pytest.approx(5.6 * 1.1 * 0.4),
        "co2_kg_market": 0.0,
    }


def test_the_config_comes_before_the_data_sheet(clock):
    found = meter(clock, EnergyConfig(device_watts=300, utilization=0.5), count=2)
    clock.now = HOUR
    assert found.kwh() == pytest.approx(2 * 0.3 * 0.5) and found.source == "logging.energy.device_watts"


@pytest.mark.parametrize("device", [None, "v5p"])
def test_unknown_power_is_null(clock, device):
    found = meter(clock, device=device, platform="cpu")
    clock.now = HOUR
    assert found.kwh() is None and found.line() == {}
    assert EnergyConfig(grid_kg_per_kwh=0.4).line(None) == {"energy_kwh": None, "co2_kg": None}


def test_gpus_are_measured_where_nvidia_smi_is_there(clock, tmp_path, monkeypatch):
    """The mean of this host's GPUs that may be used stands for all of the job's."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\n[ "$3" = --id=2,3 ] && printf "100.5\\n299.5\\n"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr(energy.shutil, "which", lambda name: str(program))
    found = meter(clock, device=None, count=16)
    assert found.kwh() is None
    found.measure()
    clock.now = HOUR
    assert found.kwh() == pytest.approx(16 * 0.2) and found.source == "nvidia-smi"
    found.measure()
    assert found.kwh() == pytest.approx(16 * 0.2)


def test_a_gpu_that_cannot_say_is_no_error(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '[N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert nvidia_watts() == []
    program.write_text("#!/bin/sh\nexit 9\n")
    assert nvidia_watts("0; rm x") == []


def test_rapl_counters_are_summed_and_may_begin_again(tmp_path):
    for name, value in (("intel-rapl:0", 900), ("intel-rapl:1", 100), ("intel-rapl:0:0", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}000000\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000000000\n")
    (tmp_path / "intel-rapl:2").mkdir()  # one that this user may not read
    counters = rapl_counters(tmp_path)
    assert [path.name for path in counters] == ["intel-rapl:0", "intel-rapl:1"]
    clock = Seconds()
    found = Rapl(counters, clock)
    assert found.watts() is None
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000000")  # 200 J, past the largest value
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("400000000")  # 300 J
    clock.now = 10.0
    assert found.watts() == pytest.approx(50)
