"""Energy and CO2 that a run is going to take, from its estimated time and the stated power of its devices."""

from typing import Any

from maverick_jax.accounting.devices import Device
from train.config import RunConfig


def estimated_energy(config: RunConfig, device: Device | None, count: int, days: float | None) -> dict[str, Any] | None:
    """`energy_kwh`, and CO2 in kg where its factors are given, of `count` devices; None where power or time is unknown.
    Evaluations, saves, restarts and hosts are not in it."""
    watts = config.logging.energy.stated_watts(device)
    if watts is None or days is None:
        return None
    return {"watts_per_device": watts, **config.logging.energy.line(watts / 1e3 * count * days * 24)}


def energy_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The lines of the plan's table about energy."""
    if found is None:
        return []
    emitted = {"location-based": found.get("co2_kg"), "market-based": found.get("co2_kg_market")}
    said = [f"{_amount(kg / 1e3, 't', 1e3, 'kg')} CO2e {how}" for how, kg in emitted.items() if kg is not None]
    energy = _amount(found["energy_kwh"] / 1e3, "MWh", 1e3, "kWh")
    return [("energy", ", ".join([f"{energy} at {found['watts_per_device']:,.0f} W per device", *said]))]


def _amount(value: float, unit: str, smaller: float, small: str) -> str:
    """`1,666 MWh`, or `0.3 kWh`, which is another unit for what is less than one."""
    return f"{value:,.4g} {unit}" if value >= 1 else f"{value * smaller:,.3g} {small}"
