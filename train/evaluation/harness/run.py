"""Runs tasks of lm-evaluation-harness on an engine, and reports their metrics with n and intervals."""

import importlib.metadata
import importlib.util
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from data.graders.figures import figure
from maverick_jax.errors import InputError
from maverick_jax.inference.engine import Engine
from maverick_jax.text import Tokenizer
from train.evaluation.asking import OnProgress


class HarnessSettings(NamedTuple):
    """How tasks are run."""

    limit: int | None = None
    """Number of examples of each task, from the first on; None: all."""
    shots: int | None = None
    """Number of worked examples; None: as the task has it."""
    chat: bool = False
    """Whether prompts are the user's messages."""
    context: int = 4096
    """Most tokens of prompt and answer together."""


DEFAULT = HarnessSettings()


def require() -> None:
    """Raises InputError if lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("--harness needs lm-evaluation-harness, of the extra `eval`: pip install 'maverick-jax[eval]'")


def run_harness(
    tasks: Iterable[str],
    engine: Engine,
    tokenizer: Tokenizer,
    settings: HarnessSettings = DEFAULT,
    on_progress: OnProgress = lambda done: None,
) -> dict[str, Any]:
    """Runs harness tasks: names that it ships, or YAML files. A task file may name Python functions beside it, which
    are run. Returns JSON values: `results` and `samples` as the harness has them, `figures` by task and metric,
    `counts` of the adapter, and `version`. Raises InputError where the harness raises, with its message."""
    require()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from train.evaluation.harness.adapter import EngineModel

    names, folders = _names(tasks)
    model = EngineModel(engine, tokenizer, on_progress)
    try:
        found = simple_evaluate(
            model=model, tasks=list(names), num_fewshot=settings.shots, limit=settings.limit, bootstrap_iters=0,
            apply_chat_template=settings.chat, fewshot_as_multiturn=settings.chat,
            task_manager=TaskManager(include_path=folders or None),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, OSError, AssertionError, ImportError, RuntimeError) as error:
        raise InputError(f"lm-evaluation-harness: {type(error).__name__}: {error}") from error
    assert found is not None
    samples = _plain(found.get("samples", {}))
    return {
        "version": importlib.metadata.version("lm_eval"),
        "begin_token": "one at the start of each sequence, by id" if tokenizer.bos_id is not None else "none",
        "results": _plain(found["results"]),
        "figures": {name: _figures(rows) for name, rows in samples.items()},
        "counts": dict(model.counts),
        "samples": samples,
    }


def _names(tasks: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of tasks, and the folders of those that are files."""
    names, folders = [], []
    for given in tasks:
        if not given.endswith((".yaml", ".yml")):
            names.append(given)
            continue
        path = pathlib.Path(given).expanduser()
        if not path.is_file():
            raise InputError(f"--harness {given}: no such file")
        declared = re.search(r"^task:\s*['\"]?([\w.-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if declared is None:
            raise InputError(f"{path}: expected a line `task: NAME`")
        names.append(declared[1])
        folders.append(str(path.parent.resolve()))
    return names, list(dict.fromkeys(folders))


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A figure for each metric that has a number for every example, by filter."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for metric in row.get("metrics", ()):
            value = row.get(metric)
            if isinstance(value, bool | int | float):
                found.setdefault(f"{metric},{row.get('filter', 'none')}", []).append(float(value))
    return {name: figure(values).as_json() for name, values in found.items()}


def _plain(value: Any) -> Any:
    """The same in JSON's types."""
    return json.loads(json.dumps(value, default=str))
