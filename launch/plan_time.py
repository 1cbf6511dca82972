"""How long a run takes, in closed form."""

from collections.abc import Iterable
from typing import Any

from maverick_jax.accounting.communication import Transfer
from maverick_jax.accounting.devices import Device
from maverick_jax.accounting.estimate import estimate
from maverick_jax.accounting.layout import Layout
from maverick_jax.parameters import Parameter
from train.config import RunConfig


def estimated_time(
    config: RunConfig,
    layout: Layout,
    device: Device | None,
    useful_flops: float,
    sent: Iterable[Transfer],
    trained: list[Parameter],
) -> dict[str, Any] | None:
    """Seconds of a step by what takes them, its MFU, and the rates that are assumed; None for a device that is not in
    `accounting.devices`. `useful_flops`: of a step on a device."""
    if device is None:
        return None
    found = estimate(
        config.model.network, layout, device, useful_flops, sent, trained=trained,
        state_bytes=config.optimizer.state_bytes,
        update_flops=sum(config.optimizer.update_flops(p, layout) for p in trained),
    )  # fmt: skip
    return {
        "products": found.products,
        "memory": found.traffic,
        "compute": found.compute,
        "wire": found.wire,
        "exposed": found.exposed,
        "step": found.step,
        "flops_done": found.flops,
        "mfu": useful_flops / (found.step * device.peak_flops),
        "rates": rates(device),
    }


def rates(device: Device) -> dict[str, float]:
    """FLOP/s and bytes/s that are assumed of a device."""
    return {
        "matrix_flops": device.matrix_rate,
        "memory_bytes": device.memory_rate,
        "link_bytes": device.link_rate,
        "network_bytes": device.network_rate,
    }


def in_rates(assumed: dict[str, float]) -> str:
    """The rates as text."""
    wires = f"{assumed['link_bytes'] / 1e9:.0f} and {assumed['network_bytes'] / 1e9:.0f} GB/s of links and network"
    memory = f"{assumed['memory_bytes'] / 1e12:.1f} TB/s of memory"
    return f"{assumed['matrix_flops'] / 1e12:.0f} TFLOP/s, {memory}, {wires}"


def time_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the plan's table about time."""
    if (found := plan["seconds"]) is None:
        return []
    wire = ", ".join(f"{kind} {seconds:.3g} s" for kind, seconds in found["wire"].items() if seconds >= 5e-4)
    compute = f"products {found['products']:.3g} s, other memory traffic {found['memory']:.3g} s"
    return [
        ("time", f"{duration(plan['days'])} in all"),
        ("  estimated step", f"{found['step']:.3g} s: {compute}, exposed communication {found['exposed']:.3g} s"),
        *([("  on the wire", wire)] if wire else []),
        ("  estimated MFU", f"{found['mfu']:.1%} at {in_rates(found['rates'])}"),
    ]


def duration(days: float) -> str:
    """Days as text, in the unit that suits them."""
    for unit, length in (("days", 1), ("hours", 24), ("minutes", 24 * 60)):
        if days * length >= 1:
            return f"{days * length:,.1f} {unit}"
    return f"{days * 86400:.1f} seconds"
