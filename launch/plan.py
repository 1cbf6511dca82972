"""Compute the cost of a run and whether it fits, from its config alone: in closed form, and, for a topology, of the
compiled step too."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from launch.compiled_plan import compiled_plan
from launch.compiled_plan import rows as compiled_rows
from launch.plan_changes import nearest_that_fits
from launch.plan_comparison import comparison
from launch.plan_comparison import rows as comparison_rows
from launch.plan_energy import energy_rows, estimated_energy
from launch.plan_time import estimated_time, time_rows
from launch.units import in_bytes
from maverick_jax import parameters
from maverick_jax.accounting.activations import host_bytes
from maverick_jax.accounting.communication import Transfer, by_kind, transfers
from maverick_jax.accounting.devices import DEVICES, Device, device_of
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.accounting.memory import memory, weight_bytes
from maverick_jax.ops.pipeline import bubble
from maverick_jax.parameters import Parameter
from maverick_jax.saved import EVERYTHING
from maverick_jax.target import Target
from train.advice import warnings
from train.config import RunConfig, check_against_mesh
from train.flops import SAMPLING, flops_of_run
from train.teachers.references import Found, find_references, heads_of

USABLE = 0.92
"""Fraction of a device's memory that a plan may use; the rest is for the runtime, fragmentation and collectives."""


def plan(config: RunConfig, topology: Target | None = None) -> dict[str, Any]:
    """The plan of a run as a JSON object; `plan["fits"]` is the verdict; if it does not fit, `plan["would_fit"]` is
    the nearest change that does (`launch.plan_changes`). Bytes are per device unless stated otherwise.

    topology: devices for which the step is compiled, whatever `run.hardware` says; `plan["compiled"]` is what the
    program takes there (`launch.compiled_plan`), and its peak decides the verdict. Raises InputError if the mesh does
    not divide the devices, the model or the batch.
    """
    target = _target(config, topology)
    sizes = _sizes(config, target["local_devices"])
    check_against_mesh(config, sizes)
    model, run, found = config.model, config.run, find_references(config)
    layout, heads = _layout(config, sizes, target["platform"]), heads_of(config, found)
    held = bytes_per_device(config, layout, found)
    flops = flops_of_run(config, {name: other.config for name, other in found.items()})
    flops = {part: n for part, n in flops.items() if n}
    tokens = config.data.batch_size * config.data.sequence_length
    limit = int(target["memory_bytes"] * USABLE)
    sent = transfers(model, layout, _trained(config), [Parameter(h.name, h.shape, h.axes, "attention") for h in heads])
    sent += [t for p in _trained(config) for t in config.optimizer.transfers(p, layout)]
    on_device = {part: n * tokens / layout.num_devices for part, n in flops.items()}
    timing = _timing(config, topology, layout, target["device"], on_device, sent, held)
    closed = lambda config, sizes: sum(
        bytes_per_device(config, _layout(config, sizes, target["platform"]), found).values()
    )
    peak = sum(held.values())
    if timing.compiled:
        peak = timing.compiled["compiled"]["bytes"]["peak"] + held.get(SAMPLING, 0)
    fits = peak <= limit
    # of a change, the closed form is known; it is taken to be off by as much as it is here
    total = lambda config, sizes: closed(config, sizes) * peak // sum(held.values())
    more_devices = target["local_devices"] is None
    return {
        "run": run.name,
        "parameters": {"total": model.num_parameters(), "active": model.num_active_parameters()},
        "hardware": {k: target[k] for k in ("name", "memory_bytes", "peak_flops")},
        "devices": layout.num_devices,
        "mesh": {axis: size for axis, size in sizes.items() if size != 1},
        "schedule": _schedule(layout),
        "bytes_per_device": {**held, "total": sum(held.values()), "limit": limit},
        "host_bytes_per_device": host_bytes(model, layout),
        "flops_per_token": {**flops, "total": sum(flops.values())},
        "flops_per_step": sum(flops.values()) * tokens,
        "steps": (steps := config.place.steps),
        "tokens_per_step": tokens,
        "tiles_per_row": layout.tiles,
        "tokens": tokens * steps,
        "seconds": timing.closed,
        "days": (days := timing.step and timing.step * steps / 86400),
        "energy": estimated_energy(config, target["device"], layout.num_devices, days),
        "checkpoints": _checkpoints(config, _trained(config), sum(math.prod(head.shape) for head in heads)),
        "communication_bytes_per_step": by_kind(sent),
        **timing.compiled,
        "fits": fits,
        "warnings": warnings(config),
        **({} if fits else {"would_fit": nearest_that_fits(config, sizes, total, limit, more_devices=more_devices)}),
    }


class _Timing(NamedTuple):
    """The closed form's time; `compiled` and `comparison`, where a program is compiled; seconds of a step."""

    closed: dict[str, Any] | None
    compiled: dict[str, Any]
    step: float | None


def _timing(
    config: RunConfig,
    topology: Target | None,
    layout: Layout,
    device: Device | None,
    flops: Mapping[str, float],
    sent: list[Transfer],
    held: Mapping[str, int],
) -> _Timing:
    """`flops`: useful ones of a step on a device. The engine samples beside the compiled step; that time is the
    closed form's."""
    useful, trained = sum(flops.values()), _trained(config)
    in_step = useful - flops.get(SAMPLING, 0.0)
    time, of_step = (estimated_time(config, layout, device, n, sent, trained) for n in (useful, in_step))
    if topology is None:
        return _Timing(time, {}, time and time["step"])
    assert time is not None and of_step is not None, f"{topology.kind} is missing in accounting.devices"
    program = compiled_plan(config, topology, layout, in_step)
    compared = comparison(program, of_step, held, by_kind(sent))
    step = program["seconds"]["step"] + time["step"] - of_step["step"]
    return _Timing(time, {"compiled": program, "comparison": compared}, step)


def bytes_per_device(config: RunConfig, layout: Layout, found: Mapping[str, Found]) -> dict[str, int]:
    """Bytes on one device, by what they hold. `found`: the objective's frozen models."""
    model, trained = config.model, _trained(config)
    held = memory(model, layout, state_bytes=config.optimizer.state_bytes, trained=trained)
    if extra := config.trainable.selection().extra_buffers(model.network):
        held["chosen_experts"] = layout.stored(extra) * BYTES[model.param_dtype]
    keeps_all = any(EVERYTHING in model.saved(spec).keep for spec in model.layers if spec.moe)
    if keeps_all and config.trainable.makes_experts():
        # made where they are used, and so no views of what is stored: the backward pass finds them kept
        experts = [p for p in parameters.of_model(model.network) if p.role == "experts"]
        held["made_experts"] = layout.used(experts) * BYTES[model.compute_dtype]
    if heads := heads_of(config, found):
        buffers = 2 if layout.accumulation_steps > 1 else 1
        each = BYTES[model.param_dtype] * (1 + buffers) + config.optimizer.state_bytes(None)
        held["heads"] = each * sum(math.prod(head.shape) // layout.parts(head.axes) for head in heads)
    if found:
        own = lambda other: dataclasses.replace(layout, rules=other.rules)
        held["references"] = sum(weight_bytes(other.config, own(other)) for other in found.values())
    maker = config.objective.batch_maker()
    if maker is not None and (extra := maker.bytes_per_device(model.network, layout)):
        held[SAMPLING] = extra
    return held


def _schedule(layout: Layout) -> dict[str, Any] | None:
    """The schedule of the pipeline; None: there is none. `bubble`: the fraction of its turns in which a stage idles."""
    if layout.stages == 1:
        return None
    stages, microbatches = layout.stages, layout.microbatches
    return {"stages": stages, "microbatches": microbatches, "bubble": bubble(stages, microbatches)}


def _trained(config: RunConfig) -> list[Parameter]:
    return config.trainable.selection().parameters(config.model.network)


def _layout(config: RunConfig, sizes: dict[str, int], platform: str) -> Layout:
    return Layout(
        rules=config.mesh.sharding_rules(),
        sizes=sizes,
        batch_size=config.data.batch_size,
        sequence_length=config.data.sequence_length,
        accumulation_steps=config.optimizer.accumulation_steps,
        platform=platform,
        loss_chunk=config.objective.logit_rows,
        tiles=config.data.tiles_per_row,
    )


def _target(config: RunConfig, topology: Target | None) -> dict[str, Any]:
    """The devices of the plan: the topology's, else those named in `run.hardware`, else this machine's."""
    if topology is not None:
        device = device_of(topology.kind)
        assert device is not None, f"{topology.kind} is missing in accounting.devices"
        return _described(topology.kind, device, topology.count)
    if name := config.run.hardware:
        return _described(name, DEVICES[name], None)
    import jax

    local = jax.local_devices()
    known = device_of(local[0].device_kind)
    if local[0].platform == "cpu":
        memory_bytes = _machine_memory() // len(local)
    else:
        memory_bytes = (local[0].memory_stats() or {}).get("bytes_limit") or (
            int(known.memory_gb * 1e9) if known else 0
        )
    return {
        "name": local[0].device_kind,
        "memory_bytes": memory_bytes,
        "peak_flops": known.peak_flops if known else None,
        "local_devices": jax.device_count(),
        "platform": local[0].platform,
        "device": known,
    }


def _described(name: str, device: Device, count: int | None) -> dict[str, Any]:
    """`count`: number of devices; None: as many as the mesh asks for."""
    return {"name": name, "memory_bytes": int(device.memory_gb * 1e9), "peak_flops": device.peak_flops,
            "local_devices": count, "platform": device.platform, "device": device}  # fmt: skip


def _sizes(config: RunConfig, local_devices: int | None) -> dict[str, int]:
    """Devices per mesh axis. An axis of -1 takes the remaining devices of this machine, or is 1 for named hardware."""
    sizes = config.mesh.sizes
    if -1 not in sizes.values():
        return sizes
    known = math.prod(size for size in sizes.values() if size != -1)
    return config.mesh.resolve(local_devices or known)


def _machine_memory() -> int:
    """Bytes of memory available to this process."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return memory_bytes if text == "max" else min(memory_bytes, int(text))


def _checkpoints(config: RunConfig, trained: list[Parameter], in_heads: int) -> dict[str, int]:
    """Checkpoints that a run writes and keeps, and the bytes of one: all weights, and the optimizer state of the
    `trained` parameters and of the `in_heads` elements of heads."""
    weights = (config.model.num_parameters() + in_heads) * BYTES[config.model.param_dtype]
    state_bytes = config.optimizer.state_bytes
    state = sum(p.size * state_bytes(p) for p in trained) + in_heads * state_bytes(None)
    every, keep, first, last = config.checkpoint.every, config.checkpoint.keep, config.place.first, config.run.steps
    written = math.ceil(last / every) - first // every
    return {
        "bytes": weights + state,
        "written": written,
        "kept": min(written, keep),
    }


# ---- text ------------------------------------------------------------------------------------------------------------


def render(found: dict[str, Any]) -> str:
    """The plan as text for a terminal."""
    held, hardware, saved = found["bytes_per_device"], found["hardware"], found["checkpoints"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items()) or "one device"
    compiled = []
    if "compiled" in found:
        compiled = compiled_rows(found["compiled"]) + comparison_rows(found["comparison"])
    wire = {kind: n for kind, n in found["communication_bytes_per_step"].items() if n}
    rows = [
        ("parameters", f"{found['parameters']['total']:,} total, {found['parameters']['active']:,} active per token"),
        ("devices", f"{found['devices']:,} x {hardware['name']} ({mesh})"),
        *_schedule_rows(found["schedule"]),
        ("tokens", f"{found['tokens']:,} = {found['steps']:,} steps x {found['tokens_per_step']:,}"),
        *_tile_rows(found),
        ("FLOPs per token", f"{found['flops_per_token']['total'] / 1e9:,.4g} GFLOP ({_shares(found)})"),
        ("FLOPs per step", f"{found['flops_per_step'] / 1e12:,.4g} TFLOP"),
    ]
    rows += time_rows(found) + energy_rows(found["energy"])
    rows += [
        ("checkpoints", f"{saved['written']:,} written, {saved['kept']} kept, {in_bytes(saved['bytes'])} each"),
        ("sent per step", ", ".join(f"{kind} {in_bytes(n)}" for kind, n in wire.items()) or "nothing"),
        *((f"  {name.replace('_', ' ')}", in_bytes(n)) for name, n in held.items() if name not in ("total", "limit")),
        ("bytes per device", f"{in_bytes(held['total'])} of {in_bytes(held['limit'])} usable"),
        *(
            [("host memory", f"{in_bytes(found['host_bytes_per_device'])} of offloaded activations per device")]
            if found["host_bytes_per_device"]
            else []
        ),
        *compiled,
        *(("warning", line) for line in found["warnings"]),
        ("verdict", "fits" if found["fits"] else "DOES NOT FIT"),
        *([] if found["fits"] else [("would fit", _would_fit(found))]),
    ]
    return "\n".join(f"{name:<18} {text}" for name, text in rows)


def _tile_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """About pictures, if rows hold some."""
    if not (tiles := found["tiles_per_row"]):
        return []
    flops = found["flops_per_token"]
    share = sum(n for part, n in flops.items() if part.startswith("vision")) / flops["total"]
    return [("pictures", f"room for {tiles} tiles in a row; the image encoder takes {share:.1%} of the FLOPs")]


def _schedule_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    said = f"{found['stages']} stages, {found['microbatches']} microbatches: bubble {found['bubble']:.1%}"
    return [("schedule", said)]


def _would_fit(found: dict[str, Any]) -> str:
    if (nearest := found["would_fit"]) is None:
        return "none found: no mesh.fsdp, model.remat and optimizer.accumulation_steps makes it fit"
    words = " ".join(f"{key}={value}" for key, value in nearest["changes"].items())
    more = f" on {nearest['devices']:,} devices" if nearest["devices"] != found["devices"] else ""
    return f"with {words}{more}: {in_bytes(nearest['bytes'])} per device"


def _shares(found: dict[str, Any]) -> str:
    flops = found["flops_per_token"]
    parts = {name: part / flops["total"] for name, part in flops.items() if name != "total" and part}
    return ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in parts.items())
