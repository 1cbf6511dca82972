"""Energy and CO2 in a plan."""

import pytest

from launch.cli import main
from launch.plan_energy import energy_rows, estimated_energy
from maverick_jax.accounting.devices import DEVICES
from train.config_files import read_config


def config(*words: str):
    return read_config("pretrain_maverick_h200x512", words)


def test_energy_is_power_times_time_times_pue():
    words = ["logging.energy={pue: 1.1, grid_kg_per_kwh: 0.4, market_kg_per_kwh: 0}"]
    found = estimated_energy(config(*words), DEVICES["h200"], 512, days=10.0)
    kwh = 0.7 * 512 * 240 * 1.1
    assert found == {"watts_per_device": 700, "energy_kwh": pytest.approx(kwh), "co2_kg": pytest.approx(kwh * 0.4),
                     "co2_kg_market": 0.0}  # fmt: skip
    assert energy_rows(found) == [
        ("energy", "94.62 MWh at 700 W per device, 37.85 t CO2e location-based, 0 kg CO2e market-based")
    ]


@pytest.mark.parametrize(("device", "days"), [("v5p", 1.0), ("h200", None), (None, 1.0)])
def test_unknown_power_or_time_is_null(device, days):
    assert estimated_energy(config(), device and DEVICES[device], 512, days) is None
    assert energy_rows(None) == []


def test_the_plan_has_it(capsys):
    main(["plan", "pretrain_maverick_h200x512", "logging.energy={grid_kg_per_kwh: 0.4}"])
    assert " MWh at 700 W per device, " in capsys.readouterr().out
