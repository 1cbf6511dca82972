"""The plan of a run: of its one config, or of each of its stages and of all of them."""

from typing import Any

from launch import plan
from launch.plan_energy import energy_rows
from launch.plan_time import duration
from launch.units import in_bytes
from maverick_jax.target import Target
from train.config import RunConfig

SUMS = ("steps", "tokens", "days")


def plan_run(config: RunConfig, topology: Target | None = None) -> dict[str, Any]:
    """The plan of a run (`launch.plan.plan`), with its `peak`: the bytes that decide whether it fits, and the limit. Of
    a run with stages: `stages`, the plan of each, and what they come to: `steps`, `tokens`, `days` and energy are sums,
    `peak` is that of the stage with the least room, named by `stage`."""
    if not config.stages:
        found = plan.plan(config, topology)
        return found | {"peak": _peak(found)}
    stages = [{"stage": stage.place.name, **plan.plan(stage, topology)} for stage in config.in_stages]
    worst = max(stages, key=lambda found: _peak(found)["bytes"] / max(1, _peak(found)["limit"]))
    sums = {key: None if any(one[key] is None for one in stages) else sum(one[key] for one in stages) for key in SUMS}
    same = {key: worst[key] for key in ("run", "parameters", "hardware", "devices")}
    return {
        **same,
        **sums,
        "flops": sum(one["flops_per_step"] * one["steps"] for one in stages),
        "energy": _sum_of([one["energy"] for one in stages]),
        "checkpoint_bytes": max(one["checkpoints"]["bytes"] for one in stages),
        "checkpoints_written": sum(one["checkpoints"]["written"] for one in stages),
        "peak": {**_peak(worst), "stage": worst["stage"]},
        "fits": all(one["fits"] for one in stages),
        "stages": stages,
    }


def render(found: dict[str, Any]) -> str:
    """The plan as text for a terminal."""
    if "stages" not in found:
        return plan.render(found)
    texts = [f"stage {one['stage']}\n{plan.render(one)}" for one in found["stages"]]
    peak = found["peak"]
    rows = [
        ("stages", ", ".join(f"{one['stage']} ({one['steps']:,} steps)" for one in found["stages"])),
        ("tokens", f"{found['tokens']:,} in {found['steps']:,} steps"),
        ("FLOPs", f"{found['flops']:,.4g}"),
        *([] if found["days"] is None else [("time", f"{duration(found['days'])} in all")]),
        *energy_rows(found["energy"]),
        ("checkpoints", f"{found['checkpoints_written']:,} written, {in_bytes(found['checkpoint_bytes'])} the largest"),
        (
            "bytes per device",
            f"{in_bytes(peak['bytes'])} of {in_bytes(peak['limit'])} usable, in stage {peak['stage']}",
        ),
        ("verdict", "fits" if found["fits"] else "DOES NOT FIT: " + ", ".join(_unfit(found))),
    ]
    return "\n\n".join([*texts, "all stages\n" + "\n".join(f"{name:<18} {text}" for name, text in rows)])


def _unfit(found: dict[str, Any]) -> list[str]:
    return [f"stage {one['stage']}" for one in found["stages"] if not one["fits"]]


def _peak(found: dict[str, Any]) -> dict[str, int]:
    held = found["bytes_per_device"]
    peak = found["compiled"]["bytes"]["peak"] if "compiled" in found else held["total"]
    return {"bytes": peak, "limit": held["limit"]}


def _sum_of(parts: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Energy and emissions of all stages, at the power of the first, which is that of all; None: not known of all."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    rest = {key: sum(part[key] for part in known) for key in known[0] if key != "watts_per_device"}
    return {"watts_per_device": known[0]["watts_per_device"], **rest}
