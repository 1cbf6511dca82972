"""Reader of Alpaca's form: an `instruction`, optionally with its `input`, and the `output` to learn."""

from typing import Any

from data.trajectories.builder import StepBuilder, at
from data.trajectories.fields import Fields
from data.trajectories.formats import openai
from data.trajectories.trajectory import Outcome, Provenance, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role

NEEDS = "`instruction` and `output`"


def matches(record: dict[str, Any]) -> bool:
    return "instruction" in record and "output" in record


def read(record: Fields) -> Trajectory:
    """Read a record with `instruction`, `output`, and optional `input`, `system`, `history` (pairs of an instruction
    and its answer, which come first), `tools`, `reward`, `id`. The input follows the instruction on a new line."""
    builder = StepBuilder()
    if (system := record.take("system", str, default="")).strip():
        _add(builder, "system", Role.SYSTEM, system)
    for i, pair in enumerate(record.take("history", list, default=[])):
        where = f"history[{i}]"
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise InputError(f"{where}: expected a pair of texts, [instruction, answer]")
        _add(builder, where, Role.USER, pair[0])
        _add(builder, where, Role.ASSISTANT, pair[1])
    asked = [record.take("instruction", str), record.take("input", str, default="")]
    _add(builder, "instruction", Role.USER, "\n".join(filter(str.strip, asked)))
    _add(builder, "output", Role.ASSISTANT, record.take("output", str))
    tools = openai.take_tools(record)
    outcome = Outcome(record.take("reward", float, default=None))
    return Trajectory(builder.finish(), tools, outcome, Provenance(id=record.take_label("id")), record.rest())


def _add(builder: StepBuilder, where: str, role: Role, text: str) -> None:
    builder.add(where, at(where, lambda: Message(role, text)))
