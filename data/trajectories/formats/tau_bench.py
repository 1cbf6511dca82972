"""Reader of tau-bench results: a list of trajectories, or one per line, with messages in OpenAI's format."""

from typing import Any

from data.trajectories import failures
from data.trajectories.builder import StepBuilder
from data.trajectories.fields import Fields
from data.trajectories.formats import openai
from data.trajectories.trajectory import Outcome, Provenance, Trajectory

NEEDS = "`traj`, a list, and `task_id`"


def matches(record: dict[str, Any]) -> bool:
    return isinstance(record.get("traj"), list) and "task_id" in record


def read(record: Fields) -> Trajectory:
    """Read a record with `traj`, `task_id`, `trial`, `reward`, `info`. tau-bench does not store the tools in it."""
    builder = StepBuilder()
    for message in record.objects("traj"):
        openai.add(builder, message, failures.tau_bench)
    task, trial = record.take_label("task_id"), record.take_label("trial")
    name = None if task is None or trial is None else f"{task}/{trial}"
    record.keep("info", "expected_actions")
    outcome = Outcome(reward=record.take("reward", float, default=None))
    tools = openai.take_tools(record)
    return Trajectory(builder.finish(), tools, outcome, Provenance(id=name, task=task), record.rest())
