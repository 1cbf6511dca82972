"""What a compiled program costs a device, read off the program: FLOPs, memory traffic, collectives, and a roofline."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

from maverick_jax.accounting.convolutions import convolution_flops
from maverick_jax.accounting.devices import MATRIX_SHARE, Device, Pattern
from maverick_jax.accounting.fused import SHARES, fused_flops, target_of
from maverick_jax.accounting.hlo import Computation, Instruction, Program, arrays_of, bytes_in_memory, bytes_of

VERSION = 9
"""Of what is read off a program: raised where the same program would give another answer."""
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
PATTERNS: dict[str, Pattern] = {
    "all-reduce": "reduce",
    "all-to-all": "exchange",
    "ragged-all-to-all": "exchange",
    "collective-permute": "shift",
}
"""How collectives send; the others go around a ring."""
_CONTROL = "after-all call conditional get-tuple-element opt-barrier tuple while"
_FREE = frozenset(f"{_CONTROL} bitcast constant iota parameter partition-id replica-id".split())
"""Opcodes that move no memory by themselves."""
_LISTED_GROUP = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")
_KERNEL = re.compile(r'custom_call_target="(?!Sharding|AllocateBuffer|Assume|annotate)')
_PLACED = re.compile(r"[a-z]+\d*\[[\d,]*\](?:\{[^}]*\})?")
_ON_HOST = "S(5)"
"""How the layout of an array in the host's memory ends."""
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction."""

    kind: str
    axes: tuple[str, ...]
    """The mesh axes along which its group runs."""
    group: tuple[int, ...]
    """The devices that take part in one exchange, as positions in the mesh."""
    dtype: str
    bytes: int
    """Bytes that a device sends each time, with ring algorithms."""
    times: float
    dynamic: bool
    """Whether it is in a loop whose count only the device knows; `times` is then assumed."""
    beside: tuple[tuple[float, float], ...]
    """(paced FLOPs, bytes of memory traffic) of each operation scheduled between its start and its end; empty: nothing
    hides it."""
    op_name: str

    @property
    def total(self) -> float:
        return self.bytes * self.times


def collectives(program: Program, mesh: Mapping[str, int]) -> list[Collective]:
    """All collectives of the program on a mesh of these axis sizes, in the order of the mesh."""
    found = []
    for computation, times in program.scheduled():
        for at, instruction in enumerate(computation.instructions):
            if (exchange := _exchange_of(program, computation, instruction)) is None:
                continue
            kind, where, itself = exchange
            group = _group(itself, math.prod(mesh.values()))
            if len(group) < 2:
                continue
            operands = where.operands(itself)
            arrays = [array for operand in operands for array in arrays_of(operand.result)]
            found.append(
                Collective(
                    kind,
                    _axes(group, mesh),
                    tuple(group),
                    "+".join(sorted({dtype for dtype, _ in arrays})),
                    _sent(kind, sum(bytes_of(operand.result) for operand in operands), len(group)),
                    times,
                    computation.name in program.dynamic,
                    _beside(program, computation, at),
                    instruction.op_name,
                )
            )
    return found


def _exchange_of(
    program: Program, computation: Computation, instruction: Instruction
) -> tuple[str, Computation, Instruction] | None:
    """(kind, where it is, itself) of the collective that an instruction starts; None: none. TPU programs write
    some reduce-scatters as a fusion of an all-reduce and a slice of its result."""
    if (kind := instruction.opcode.removesuffix("-start")) in COLLECTIVES:
        return kind, computation, instruction
    for _, name in instruction.called() if instruction.opcode == "fusion" else ():
        if name.startswith("all-reduce-scatter"):
            body = program.computations[name]
            return "reduce-scatter", body, next(i for i in body.instructions if i.opcode == "all-reduce")
    return None


@dataclasses.dataclass(frozen=True)
class HostCopy:
    """A copy between the memories of a device and its host."""

    bytes: int
    times: float
    beside: tuple[tuple[float, float], ...]
    """As of a collective."""


def host_copies(program: Program) -> list[HostCopy]:
    """All copies to and from the host's memory: whole arrays, and slices of stacks that a loop reads or writes."""
    found = []
    for computation, times in program.scheduled():
        for at, instruction in enumerate(computation.instructions):
            starts = (
                instruction.opcode.endswith("-start") and instruction.opcode.removesuffix("-start") not in COLLECTIVES
            )
            if starts and _ON_HOST in instruction.result:
                here = [array for array in _PLACED.findall(instruction.result) if _ON_HOST not in array]
                moved = max(map(bytes_of, here), default=0)
                found.append(HostCopy(moved, times, _beside(program, computation, at)))
    return found


def _group(instruction: Instruction, devices: int) -> list[int]:
    """The devices of the first group, as positions in the mesh."""
    if found := _LISTED_GROUP.search(instruction.text):
        return [int(n) for n in found[1].split(",") if n]
    if found := _IOTA_GROUPS.search(instruction.text):
        size, shape = int(found[2]), [int(n) for n in found[3].split(",")]
        order = [int(n) for n in found[4].split(",")] if found[4] else list(range(len(shape)))
        return [_iota(i, shape, order) for i in range(size)]
    if found := _MESH_GROUPS.search(instruction.text):
        return _mesh_group(*found.groups())
    if found := _PAIRS.search(instruction.text):
        return [int(found[1]), int(found[2])]
    if "replica_groups={}" in instruction.text or "replica_groups=" not in instruction.text:
        return list(range(devices))
    raise ValueError(f"{instruction.name}: groups in a form that is not known: {instruction.text[:200]}")


def _mesh_group(mesh: str, shape: str | None, order: str | None, axes: str) -> list[int]:
    """The first group along `axes` of a mesh such as `'axis_0'=512,'axis_1'=8`. Its devices are iota(shape), transposed
    by `order`."""
    sizes = {name: int(size) for name, size in (part.split("=") for part in mesh.split(","))}
    dims = [int(n) for n in shape.split(",")] if shape else [math.prod(sizes.values())]
    transposed = [int(n) for n in order.split(",")] if order else list(range(len(dims)))
    found = [0]
    for name, stride in zip(sizes, _strides([*sizes.values()]), strict=True):
        if name in axes.split(","):
            found = [base + i * stride for base in found for i in range(sizes[name])]
    return [_iota(i, dims, transposed) for i in found]


def _strides(shape: list[int]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _iota(index: int, shape: list[int], order: list[int]) -> int:
    """Element `index` of the flattened transpose of iota(shape) by `order`."""
    strides, value = _strides(shape), 0
    for axis in reversed(order):
        index, coordinate = divmod(index, shape[axis])
        value += coordinate * strides[axis]
    return value


def _axes(group: list[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
    coordinates: dict[str, set[int]] = {axis: set() for axis in mesh}
    for device in group:
        for axis in reversed([*mesh]):
            device, coordinate = divmod(device, mesh[axis])
            coordinates[axis].add(coordinate)
    return tuple(axis for axis in mesh if len(coordinates[axis]) > 1)


def _sent(kind: str, operand: int, n: int) -> int:
    """Bytes that each of n devices sends, of operands of this size on a device."""
    if kind == "all-gather":
        return operand * (n - 1)
    if kind == "collective-permute":
        return operand
    return (2 if kind == "all-reduce" else 1) * operand * (n - 1) // n


def _beside(program: Program, computation: Computation, at: int) -> tuple[tuple[float, float], ...]:
    start, found = computation.instructions[at], []
    if not start.opcode.endswith("-start"):
        return ()
    for instruction in computation.instructions[at + 1 :]:
        if instruction.opcode.endswith("-done") and start.name in instruction.operands:
            break
        if moved := traffic(program, computation, instruction):
            found.append((paced_flops(program, computation, instruction), moved))
    return tuple(found)


def traffic(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction reads from the device's memory and writes to it; none for copies to and from the
    host, which its link bounds (`host_copies`), and for copies to a core's own memory, which run beside other work."""
    opcode = instruction.opcode
    if any(_ON_HOST in array.result for array in (instruction, *computation.operands(instruction))):
        return 0.0
    if opcode in _FREE or opcode.endswith(("-start", "-done")) or opcode in COLLECTIVES:
        return 0.0
    if opcode in ("dynamic-slice", "slice"):
        return 2.0 * bytes_in_memory(instruction.result)
    if opcode == "dynamic-update-slice":
        return 2.0 * bytes_in_memory(computation.operands(instruction)[1].result)
    fused = next((program.computations[name] for role, name in instruction.called() if role == "calls"), None)
    operands = computation.operands(instruction)
    if opcode != "fusion" or fused is None:
        return float(bytes_in_memory(instruction.result) + sum(bytes_in_memory(operand.result) for operand in operands))
    return _written(fused) + sum(_read(fused, parameter) for parameter in fused.instructions)


def _written(fused: Computation) -> float:
    root = fused.root
    parts = fused.operands(root) if root.opcode == "tuple" else [root]
    return float(sum(bytes_in_memory(_update(fused, part).result) for part in parts))


def _update(fused: Computation, instruction: Instruction) -> Instruction:
    """What a root writes: in an update in place, the slice alone."""
    while instruction.opcode in ("bitcast", "convert") and fused.operands(instruction):
        instruction = fused.operands(instruction)[0]
    return fused.operands(instruction)[1] if instruction.opcode == "dynamic-update-slice" else instruction


def _read(fused: Computation, parameter: Instruction) -> float:
    """Bytes that a fusion reads of a parameter: of one that it only slices, the slices; of one that it only updates,
    nothing."""
    if parameter.opcode != "parameter":
        return 0.0
    aliases, sliced = {parameter.name}, 0.0
    for user in fused.instructions:
        if user.opcode == "bitcast" and aliases & set(user.operands):
            aliases.add(user.name)
        elif aliases & set(user.operands):
            is_source = user.operands[0] in aliases
            if user.opcode in ("dynamic-slice", "slice") and is_source:
                sliced += bytes_in_memory(user.result)
            elif user.opcode != "dynamic-update-slice" or not is_source:
                return float(bytes_in_memory(parameter.result))
    return sliced


def flops(program: Program) -> float:
    """FLOPs of the program's matrix products on a device, with each loop of unknown count run once."""
    total = 0.0
    for computation, times in program.scheduled():
        for instruction in computation.instructions:
            total += times * flops_of(program, computation, instruction)
    return total


def flops_of(program: Program, computation: Computation, instruction: Instruction) -> float:
    """FLOPs of the matrix products in an instruction; a fusion's are those of its body, and of kernels that are not the
    compiler's own those that are known count (`accounting.fused`)."""
    if instruction.opcode == "dot":
        contracted = _CONTRACTED.search(instruction.text)
        (_, shape), *_ = arrays_of(computation.operands(instruction)[0].result)
        inner = math.prod(shape[int(axis)] for axis in contracted[1].split(",") if axis) if contracted else 1
        return 2.0 * inner * sum(math.prod(out) for _, out in arrays_of(instruction.result))
    if instruction.opcode == "custom-call":
        return fused_flops(computation, instruction)
    if instruction.opcode == "convolution":
        (_, image), (_, kernel) = (arrays_of(operand.result)[0] for operand in computation.operands(instruction))
        return convolution_flops(instruction.text, image, kernel, arrays_of(instruction.result)[0][1])
    if instruction.opcode != "fusion":
        return 0.0
    inside = [program.computations[name] for _, name in instruction.called() if name in program.computations]
    return sum(flops_of(program, body, i) for body in inside for i in body.instructions)


def paced_flops(program: Program, computation: Computation, instruction: Instruction) -> float:
    """The same, those of a kernel in FLOPs that the compiler's own products do in its time."""
    pace = MATRIX_SHARE / SHARES.get(target_of(instruction), MATRIX_SHARE)
    return pace * flops_of(program, computation, instruction)


def kernels(program: Program) -> dict[str, float]:
    """Calls of kernels that are not the compiler's own, by name, most calls first."""
    found: dict[str, float] = collections.defaultdict(float)
    for computation, times in program.scheduled():
        for instruction in computation.instructions:
            if instruction.opcode == "custom-call" and _KERNEL.search(instruction.text):
                found[target_of(instruction)] += times
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
    """By kind of collective, the axes it runs along and its dtype, such as `all-gather fsdp bf16`: bytes sent, times,
    bytes with no work beside them, and instructions in loops of unknown count. Most bytes first."""
    table: dict[str, dict[str, float]] = {}
    for c in found:
        new = {"bytes": c.total, "times": c.times, "alone": 0 if c.beside else c.total, "dynamic": int(c.dynamic)}
        entry = table.setdefault(f"{c.kind} {'+'.join(c.axes)} {c.dtype}", dict.fromkeys(new, 0))
        for name, value in new.items():
            entry[name] += value
    return dict(sorted(table.items(), key=lambda item: -item[1]["bytes"]))


# ---- roofline --------------------------------------------------------------------------------------------------------

LAUNCH_SECONDS = 3e-6
"""Time that the start of an operation takes."""


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a program on a device: each operation takes the longer of its products and its memory traffic; of
    kernels that are not the compiler's own, products are known of those in `accounting.fused`."""

    compute: float
    wire: float
    """Of all collectives and copies to and from the host, one after the other."""
    exposed: float
    """What of `wire` is longer than the work that is scheduled beside it."""

    @property
    def step(self) -> float:
        return self.compute + self.exposed


def roofline(program: Program, found: list[Collective], device: Device) -> Roofline:
    """Of a program with these collectives on such devices."""
    seconds = lambda products, moved: max(products / device.matrix_rate, moved / device.memory_rate) + LAUNCH_SECONDS
    compute = 0.0
    for computation, times in program.scheduled():
        for instruction in computation.instructions:
            moved = traffic(program, computation, instruction)
            if moved:
                compute += times * seconds(paced_flops(program, computation, instruction), moved)
    wire = exposed = 0.0
    for c in found:
        near = sum(at // device.group == c.group[0] // device.group for at in c.group) if device.group else len(c.group)
        sending = device.seconds_to_send(c.bytes, len(c.group), near, PATTERNS.get(c.kind, "ring"))
        wire += c.times * sending
        exposed += c.times * max(0.0, sending - sum(seconds(*work) for work in c.beside))
    for copy in host_copies(program):
        copying = copy.bytes / device.host_rate
        wire += copy.times * copying
        exposed += copy.times * max(0.0, copying - sum(seconds(*work) for work in copy.beside))
    return Roofline(compute, wire, exposed)
