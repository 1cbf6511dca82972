"""Reads the text of a compiled XLA program: its computations, how often each runs, and the bytes of its arrays."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
"""Bytes per element by type; integers and 8-bit floats say it in their names."""
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_ON_CHIP = re.compile(r"\b[a-z]\w*\[[\d,]*\]\{[^}]*:T\([^}]*S\(1\)[^}]*\}")
"""An array of a TPU program in the memory of the chip's core. Memory space 1 of a GPU is device memory."""
_HEADER = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_OPCODE = re.compile(r"\s(?P<opcode>[a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_BROKEN = re.compile(r"kernel_metadata=\{\n(.*)\n\}")
"""An attribute of a kernel that Pallas compiled, printed on three lines."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    result: str
    """Its type, as text."""
    operands: tuple[str, ...]
    """Names of instructions of the same computation."""
    text: str
    """All after the opcode."""
    is_root: bool = False

    @property
    def op_name(self) -> str:
        """The path of scopes and primitives that it was traced from."""
        found = _OP_NAME.search(self.text)
        return found[1] if found else ""

    def called(self) -> list[tuple[str, str]]:
        """(role, name) of the computations that it runs, such as ("body", "region_1")."""
        found = _CALLED.findall(self.text)
        if branches := _BRANCHES.search(self.text):
            found += [("branch", name) for name in _NAME.findall(branches[1])]
        return found

    @property
    def trips(self) -> int | None:
        """How often a `while` runs its body, if the line says it."""
        found = _TRIPS.search(self.text)
        return int(found[1]) if found else None

    @property
    def constant(self) -> int | None:
        """The value of an integer constant; None: it is something else."""
        found = re.match(r"(\d+)\)", self.text) if self.opcode == "constant" else None
        return int(found[1]) if found else None


Trips = Callable[[Instruction], int]
Shares = Callable[[Instruction], float | None]


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions in the order of their schedule."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {i.name: i for i in self.instructions}

    @property
    def root(self) -> Instruction:
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions whose results it reads."""
        return [self.by_name[name] for name in instruction.operands if name in self.by_name]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program. `runs`: how often each computation runs that is not a part of a fusion; on average, of a
    branch that is taken some of the times. `dynamic`: those in loops whose count only the device knows."""

    computations: dict[str, Computation]
    runs: dict[str, float]
    dynamic: frozenset[str]

    @classmethod
    def parse(cls, text: str, trips: Trips = lambda loop: 1, shares: Shares = lambda conditional: None) -> "Program":
        """Of the text of `jax.stages.Compiled.as_text()`. `trips`: how often a loop turns whose count only the device
        knows. `shares`: the part of the times that the condition of a conditional holds; None: not known, and every
        branch counts. Raises ValueError if the text has no entry."""
        computations, entry = _computations(text)
        if entry is None:
            raise ValueError("the text of the program has no ENTRY computation")
        runs: collections.Counter[str] = collections.Counter()
        dynamic: set[str] = set()
        _RunCount(computations, trips, shares, runs, dynamic).add(entry, 1, False)
        return cls(computations, dict(runs), frozenset(dynamic))

    def scheduled(self) -> list[tuple[Computation, float]]:
        """The computations that run by themselves, with how often."""
        return [(self.computations[name], times) for name, times in self.runs.items()]


def bytes_of(type_text: str) -> int:
    """Bytes of an array type or of all arrays of a tuple type, as text."""
    return int(sum(math.prod(shape) * _element_bytes(kind) for kind, shape in arrays_of(type_text)))


def bytes_in_memory(type_text: str) -> int:
    """The same, of the arrays that are in the device's memory, and not in a TPU core's own."""
    return bytes_of(_ON_CHIP.sub("", type_text))


def arrays_of(type_text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(element type, shape) of each array of a type."""
    found = _ARRAY.findall(type_text)
    return [(kind, tuple(int(n) for n in sizes.split(",") if n)) for kind, sizes in found if kind != "token"]


def _element_bytes(kind: str) -> float:
    if kind in BYTES:
        return BYTES[kind]
    bits = re.match(r"[a-z]+(\d+)", kind)
    return int(bits[1]) / 8 if bits else 0


def _computations(text: str) -> tuple[dict[str, Computation], str | None]:
    found: dict[str, Computation] = {}
    entry = name = None
    lines: list[Instruction] = []
    for line in _BROKEN.sub(r"kernel_metadata={\1}", text).splitlines():
        if not line.startswith(" ") and (header := _HEADER.match(line)):
            name, lines = header["name"], []
            entry = name if header["entry"] else entry
        elif line.startswith("}") and name is not None:
            found[name] = Computation(name, tuple(lines))
            name = None
        elif name is not None and (instruction := _instruction(line.strip())) is not None:
            lines.append(instruction)
    return found, entry


def _instruction(line: str) -> Instruction | None:
    if not (found := _INSTRUCTION.match(line)) or not (opcode := _OPCODE.search(" " + found["rest"])):
        return None
    rest = " " + found["rest"]
    after = rest[opcode.end() :]
    operands = tuple(_NAME.findall(after[: _closing(after)]))
    result = rest[: opcode.start()].strip()
    return Instruction(found["name"], opcode["opcode"], result, operands, after, bool(found["root"]))


def _closing(text: str) -> int:
    """Index of the parenthesis that closes one opened before `text`."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i
    return len(text)


def _turns(computations: dict[str, Computation], loop: Instruction) -> int | None:
    """How often a `while` runs its body; None: known only when it runs. TPU programs do not say it; there, a loop that
    goes on while its counter is less than a constant began at 0, as loops of JAX do."""
    condition = dict(loop.called()).get("condition", "")
    if loop.trips is not None or condition not in computations:
        return loop.trips
    root = computations[condition].root
    if root.opcode != "compare" or "direction=LT" not in root.text or len(root.operands) != 2:
        return None
    return computations[condition].operands(root)[1].constant


def _taken(conditional: Instruction, at: int, share: float) -> float:
    """The part of the times that the branch at a place among `conditional.called()` is taken. Branches of a condition
    are named `true_computation` and `false_computation`, or are the first and the second of two: for false and true."""
    role = conditional.called()[at][0]
    return share if role == "true_computation" or (role == "branch" and at == 1) else 1 - share


@dataclasses.dataclass(frozen=True)
class _RunCount:
    """Counts how often computations run."""

    computations: dict[str, Computation]
    trips: Trips
    shares: Shares
    runs: collections.Counter
    dynamic: set[str]

    def add(self, name: str, times: float, is_dynamic: bool) -> None:
        """Counts a computation and all that it runs."""
        if name not in self.computations:
            return
        self.runs[name] += times
        if is_dynamic:
            self.dynamic.add(name)
        for instruction in self.computations[name].instructions:
            if instruction.opcode == "fusion" or "custom-call" in instruction.opcode:
                continue
            for at, (role, called) in enumerate(instruction.called()):
                if role == "to_apply" and instruction.opcode != "call":
                    continue  # the sum of a reduction
                turns = self._turns(instruction, at)
                unknown = is_dynamic or turns is None
                self.add(called, times * (self.trips(instruction) if turns is None else turns), unknown)

    def _turns(self, instruction: Instruction, at: int) -> float | None:
        """How often an instruction runs what it calls at a place; None: known only when it runs."""
        if instruction.opcode == "conditional" and (share := self.shares(instruction)) is not None:
            return _taken(instruction, at, share)
        return _turns(self.computations, instruction) if instruction.opcode == "while" else 1
