"""Compile the real step of a run for a topology, and say what it costs there: memory, FLOPs, collectives, time."""

import functools
import hashlib
import json
import os
import pathlib
import re
from typing import Any

import jax

from launch.plan_time import in_rates, rates
from launch.units import in_bytes
from maverick_jax.accounting import compiled as accounts
from maverick_jax.accounting.attention import seen_share
from maverick_jax.accounting.devices import Device, device_of
from maverick_jax.accounting.hlo import Instruction, Program
from maverick_jax.accounting.layout import Layout
from maverick_jax.config import ModelConfig
from maverick_jax.files import write_atomically
from maverick_jax.ops.attention.cudnn import FURTHER_CALLS
from maverick_jax.ops.context import SEEN_TILES
from maverick_jax.ops.dispatch import FURTHER_ROUNDS
from maverick_jax.ops.grouped_matmul import tile_height
from maverick_jax.ops.kernels import recorded
from maverick_jax.progress import Working
from maverick_jax.target import Target
from train.ahead import Ahead, lower_ahead
from train.config import RunConfig

_TILE_LOOP = re.compile(r"experts\)*/while$")
_SEEN_TILES = re.compile(rf"/(\w+)/shard_map/.*{SEEN_TILES}/cond$")
_ROUND_LOOP = re.compile(rf"({FURTHER_ROUNDS}|{FURTHER_CALLS})\)*/while$")


def compiled_plan(config: RunConfig, target: Target, layout: Layout, useful_flops: float) -> dict[str, Any]:
    """What the compiled step takes on a device of `target`, as a JSON object. `useful_flops`: of a step on a device.

    The answer is kept on disk under a digest of the program, and read again for the same program.
    """
    with recorded() as choices:
        ahead = lower_ahead(config, target)
    chosen = {"chosen": [str(choice) for choice in choices]}
    path = _folder() / f"{_digest(ahead, target)}.json"
    device = device_of(target.kind)
    assert device is not None, f"{target.kind} is missing in accounting.devices"
    if cached := path.is_file():
        return _answer(json.loads(path.read_text()), chosen, device, useful_flops, cached)
    with Working(f"compiling the step for {target.count:,} x {target.kind}", shown=config.logging.progress):
        found = measure(ahead, config.model.network, layout, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found, indent=1).encode())
    return _answer(found, chosen, device, useful_flops, cached)


def _answer(found: dict[str, Any], chosen, device: Device, useful_flops: float, cached: bool) -> dict[str, Any]:
    """What was read off a program, with what depends on the FLOPs that are useful, which are no part of the program."""
    found["flops"]["useful"] = useful_flops
    found["mfu"] = useful_flops / (found["seconds"]["step"] * device.peak_flops)
    return found | chosen | {"cached": cached}


def measure(ahead: Ahead, model: ModelConfig, layout: Layout, device: Device) -> dict[str, Any]:
    """Compile, and read the costs off the program."""
    step = ahead.compile()
    memory = step.compiled.memory_analysis()
    assert memory is not None, "the compiler gives no memory analysis"
    with jax.set_mesh(ahead.mesh):
        trips = Trips(model, layout)
    program = Program.parse(step.compiled.as_text(), trips, trips.share)
    mesh = dict(ahead.mesh.shape)
    found = accounts.collectives(program, mesh)
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return {
        "seconds_to_compile": step.seconds,
        "bytes": {
            "arguments": arguments,
            "temporary": temporary,
            "new_outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "peak": getattr(memory, "peak_memory_in_bytes", 0) or arguments + temporary,
            "host": memory.host_temp_size_in_bytes,
        },
        "collectives": accounts.by_kind(found),
        "kernels": accounts.kernels(program),
        **_times(program, found, device),
    }


def _times(program: Program, found: list[accounts.Collective], device: Device) -> dict[str, Any]:
    line = accounts.roofline(program, found, device)
    return {
        "flops": {"done": accounts.flops(program)},
        "seconds": {"compute": line.compute, "wire": line.wire, "exposed": line.exposed, "step": line.step},
        "rates": rates(device),
    }


class Trips:
    """Turns of loops whose count only the device knows, if tokens are spread evenly over the experts and documents are
    not short: no round of the exchange and no call of attention after the first, and the tiles that a device's rows
    fill."""

    def __init__(self, model: ModelConfig, layout: Layout):
        devices = layout.ways("experts")
        experts, rows = model.num_local_experts // devices, layout.tokens * model.num_experts_per_tok
        room = layout.exchange(model)
        rounds, received = (room.rounds, room.rows * devices) if room else (1, rows)
        self._tiles = -(-rows // (rounds * tile_height(received, experts))) if experts else 1
        self._seen = functools.partial(seen_share, model, layout)

    def __call__(self, loop: Instruction) -> int:
        if _ROUND_LOOP.search(loop.op_name):
            return 0
        return self._tiles if _TILE_LOOP.search(loop.op_name) else 1

    def share(self, conditional: Instruction) -> float | None:
        """The part of the times that a conditional's condition holds, in rows of one segment: that of the pairs of
        tiles in which a query sees a key. None: not known."""
        found = _SEEN_TILES.search(conditional.op_name)
        return self._seen(found[1]) if found else None


def _digest(ahead: Ahead, target: Target) -> str:
    """Of the program before it is compiled, its devices, and the compilers' versions and flags."""
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    digest = hashlib.sha256(f"{jax.__version__} {target.kind} {target.count} {accounts.VERSION} {flags}".encode())
    digest.update(ahead.lowered.as_text().encode())
    return digest.hexdigest()[:32]


def _folder() -> pathlib.Path:
    root = os.environ.get("MAVERICK_CACHE") or pathlib.Path.home() / ".cache" / "maverick-jax"
    return pathlib.Path(root) / "plans"


# ---- text ------------------------------------------------------------------------------------------------------------


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the plan's table about the compiled step."""
    size, took = found["bytes"], sum(found["seconds_to_compile"].values())
    parts = f"arguments {in_bytes(size['arguments'])}, temporary {in_bytes(size['temporary'])}"
    lines = [
        ("compiled in", f"{took:.0f} s" + (" (kept)" if found["cached"] else "")),
        ("compiled peak", f"{in_bytes(size['peak'])} per device: {parts}"),
        *([("  host memory", in_bytes(size["host"]))] if size["host"] else []),
    ]
    for kind, entry in found["collectives"].items():
        if entry["bytes"] >= 1e3:
            alone = f", {in_bytes(entry['alone'])} with nothing beside it" if entry["alone"] else ""
            lines.append((f"  {kind}", f"{in_bytes(entry['bytes'])} in {entry['times']:,.0f}{alone}"))
    if found["kernels"]:
        lines.append(("kernels", ", ".join(f"{name} x {n:,.0f}" for name, n in found["kernels"].items())))
    lines += [("  chosen", choice) for choice in found["chosen"]]
    return lines + _time_rows(found)


def _time_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    seconds, flops = found["seconds"], found["flops"]
    share = f"{flops['done'] / flops['useful']:.2f} x useful"
    wire = f"exposed communication {seconds['exposed']:.3g} s of {seconds['wire']:.3g} s"
    return [
        ("FLOPs done", f"{flops['done'] / 1e12:,.4g} TFLOP per device, {share}"),
        ("step", f"{seconds['step']:.3g} s: compute {seconds['compute']:.3g} s, {wire}"),
        ("MFU", f"{found['mfu']:.1%} at {in_rates(found['rates'])}"),
    ]
