"""Records read into trajectories, and what is learned from them."""

import json
import pathlib
from typing import Any

from data.trajectories import Trajectory, loss_weights, read_trajectories
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import render

BYTES = load_tokenizer("bytes")
ASK, ANSWER = {"role": "user", "content": "What time is it?"}, {"role": "assistant", "content": "It is ten."}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}
    for name, parameters in (
        ("get_time", {"type": "object", "properties": {}}),
        ("weather", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}),
    )
]


def read(folder: pathlib.Path, *records: Any, name: str = "runs.jsonl", **options: Any) -> list[Trajectory]:
    """The trajectories of a file with these records."""
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(read_trajectories(path, **options))


def roles(trajectory: Trajectory) -> list[str]:
    return [step.message.role.name for step in trajectory.steps]


def calls(trajectory: Trajectory) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, dict(call.arguments)) for step in trajectory.steps for call in step.message.calls]


def learned(trajectory: Trajectory) -> str:
    """The text of all tokens with a loss weight, in the default dialect."""
    rendered = render(trajectory.conversation, BYTES)
    weights = loss_weights(trajectory, rendered)
    return BYTES.decode(rendered.ids[weights > 0].tolist(), controls=True)
