"""Files of short trajectories, and data configs with them, for tests of rows and objectives."""

import json
import pathlib

from data.config import DataConfig
from data.trajectories import Outcome, Step, Trajectory
from data.trajectories.formats import ours
from maverick_jax.text.chat import Message, Role, Tool, ToolCall

TOOLS = (Tool("book", "Book.", {"type": "object"}),)


def short_run(number: int) -> Trajectory:
    """A trajectory with a failed call, its recovery, and an answer whose length depends on `number`. Every third one
    declares tools, every third has no system message, every fourth failed, and in every second one message has its own
    weight."""
    steps = [] if number % 3 == 2 else [Step(Message(Role.SYSTEM, "Book."))]
    steps += [
        Step(Message(Role.USER, f"For {number}.")),
        Step(Message(Role.ASSISTANT, "I try.", calls=(ToolCall("book", {"n": number}),))),
        Step(Message(Role.TOOL, "full"), error=True),
        Step(Message(Role.ASSISTANT, calls=(ToolCall("book", {"n": number + 1}),))),
        Step(Message(Role.TOOL, "booked")),
        Step(Message(Role.ASSISTANT, "Done" + "." * (7 * number)), weight=0.25 if number % 2 else None),
    ]
    return Trajectory(steps, () if number % 3 else TOOLS, Outcome(reward=float(number % 4 != 0)))


def write_runs(path: pathlib.Path, count: int, more: str = "") -> pathlib.Path:
    """Writes `count` short trajectories in our format, then the text `more`."""
    path.write_text("".join(ours.write(short_run(i)) + "\n" for i in range(count)) + more)
    return path


def tuning(path: pathlib.Path) -> list[str]:
    """Overrides that give the small run the objective `trajectory` and the trajectories at `path`."""
    source = json.dumps({"path": str(path), "format": "trajectories"})
    return [f"data.sources={{shop: {source}}}", "data.sequence_length=256", "data.held_out_fraction=0.3",
            "data.batch_size=4", "run.eval_batches=1", "objective.kind=trajectory"]  # fmt: skip


def data_config(folder: pathlib.Path, count: int = 6, options: dict | None = None, **changes) -> DataConfig:
    """A data config with a source `shop` of short trajectories, tokenized as bytes."""
    path = folder / "runs.jsonl"
    if not path.exists():
        write_runs(path, count)
    source = {"path": str(path), "format": "trajectories", "trajectories": options or {}}
    base = {"sources": {"shop": source}, "sequence_length": 512, "batch_size": 4, "held_out_fraction": 0.0,
            "shuffle": False, "cache_dir": str(folder / "cache")}  # fmt: skip
    return DataConfig.model_validate(base | changes)
