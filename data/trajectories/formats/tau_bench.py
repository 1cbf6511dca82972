"""tau-bench: what its runs are saved as, a list of runs or a run a line; each run's messages are in OpenAI's form."""

from typing import Any

from data.trajectories import failures
from data.trajectories.builder import Builder
from data.trajectories.fields import Fields
from data.trajectories.formats import openai
from data.trajectories.trajectory import Outcome, Provenance, Trajectory

NEEDS = "`traj`, a list, and `task_id`"


def matches(record: dict[str, Any]) -> bool:
    return isinstance(record.get("traj"), list) and "task_id" in record


def read(record: Fields) -> Trajectory:
    """A run: `traj`, `task_id`, `trial`, `reward`, `info`. The tools are not in it."""
    builder = Builder()
    for message in record.objects("traj"):
        openai.add(builder, message, failures.tau_bench)
    task, trial = record.take_label("task_id"), record.take_label("trial")
    name = None if task is None or trial is None else f"{task}/{trial}"
    record.keep("info", "expected_actions")
    outcome = Outcome(reward=record.take("reward", float, default=None))
    tools = openai.take_tools(record)
    return Trajectory(builder.finish(), tools, outcome, Provenance(id=name, task=task), record.rest())
