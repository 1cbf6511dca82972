"""Evaluation tasks: prompts and graders, one file per kind, chosen by `tasks.NAME.kind`. No JAX."""

import pathlib
from typing import Annotated

from pydantic import Field

from data.graders.base import Grade
from data.tasks.base import Example, Graded, Task, TaskInfo
from data.tasks.bbq import Bbq
from data.tasks.bfcl import Bfcl
from data.tasks.chart_qa import ChartQa
from data.tasks.competition import Competition
from data.tasks.doc_vqa import DocVqa
from data.tasks.gsm8k import Gsm8k
from data.tasks.human_eval import HumanEval
from data.tasks.key_values import KeyValues
from data.tasks.mbpp import Mbpp
from data.tasks.mgsm import Mgsm
from data.tasks.multiple_choice import MultipleChoice
from data.tasks.needle import Needle
from data.tasks.questions import Questions
from data.tasks.retrieval import Retrieval
from data.tasks.toy_shop_orders import ToyShopOrders
from maverick_jax.settings import shipped, strict_yaml, validation
from maverick_jax.settings.kinds import Kinds
from maverick_jax.settings.section import Section

__all__ = ["TASKS", "AnyTask", "Example", "Grade", "Graded", "Task", "TaskInfo", "TasksConfig", "read_tasks"]

TASKS = Kinds("task", Task)
KINDS = (
    *(Questions, ToyShopOrders, MultipleChoice, Gsm8k, Mgsm, Competition, HumanEval, Mbpp, Bbq, Bfcl, ChartQa, DocVqa),
    *(KeyValues, Needle, Retrieval),
)
for _kind in KINDS:
    TASKS.register(_kind)

AnyTask = Annotated[Task, TASKS]


class TasksConfig(Section):
    """A file of tasks (`configs/task/*.yaml`)."""

    tasks: Annotated[dict[str, AnyTask], Field(min_length=1)]
    """Tasks by name."""


def read_tasks(name_or_file: str) -> dict[str, Task]:
    """The tasks of a shipped file (by name), of a YAML file, or of a file of JSON lines, which is one task of kind
    `questions`. Raises InputError with one line per problem."""
    path = pathlib.Path(name_or_file)
    if path.suffix in (".jsonl", ".ndjson"):
        return {path.stem: Questions(path=name_or_file)}
    return validation.validate(TasksConfig, strict_yaml.read(shipped.find(name_or_file, shipped.task_path))).tasks
