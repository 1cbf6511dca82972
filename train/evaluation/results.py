"""Files of evaluation results, and two results compared example by example."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from data.graders.figures import holm, paired
from maverick_jax.errors import InputError
from maverick_jax.files import read_json, write_atomically

FILE = "evaluation.json"
FORMAT = "maverick-jax evaluation 1"
MAX_BYTES = 1 << 31


def write_results(folder: str | pathlib.Path, found: Mapping[str, Any]) -> pathlib.Path:
    """Writes what `train.evaluate.evaluate` returned to `evaluation.json` in `folder`; returns its path."""
    path = pathlib.Path(folder).expanduser() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **found}, indent=1)
    write_atomically(path, text.encode("utf-8", errors="backslashreplace"))
    return path


def results_path(given: str) -> pathlib.Path | None:
    """The file of results at a path: the file itself, or that of a folder of results; None if it is neither."""
    path = pathlib.Path(given).expanduser()
    if path.is_file() and path.suffix == ".json":
        return path
    return path / FILE if (path / FILE).is_file() else None


def read_results(path: pathlib.Path) -> dict[str, Any]:
    """Raises InputError if the file holds no results of tasks."""
    found = read_json(path, MAX_BYTES)
    if found.get("format") != FORMAT:
        raise InputError(f"{path}: format: {found.get('format')!r:.60}; expected {FORMAT!r}")
    tasks = found.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise InputError(f"{path}: holds no results of tasks; expected those of `maverick eval ... --tasks ... --out`")
    for name, task in tasks.items():
        examples = task.get("examples") if isinstance(task, dict) else None
        if not isinstance(examples, list) or not all(
            isinstance(e, dict) and {"id", "score"} <= e.keys() for e in examples
        ):
            raise InputError(f"{path}: tasks.{name[:80]}: examples: expected a list of objects with id and score")
    return found


def _is_example(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), str) and isinstance(value.get("score"), int | float)


def compare(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    """Two models' results of the same tasks, as `evaluate` returns them or files hold them: `models`, their `names`;
    `tasks`: by task, the score of each (`first`, `second`) and the `paired` difference with its p-value, and that after
    Holm's correction over all tasks, `p_holm`. Raises InputError for tasks that only one has, and where examples
    differ."""
    a, b = first["tasks"], second["tasks"]
    if a.keys() != b.keys():
        alone = sorted(a.keys() ^ b.keys())
        raise InputError(f"task {alone[0][:80]}: only {names[0 if alone[0] in a else 1]} has results of it")
    found = {name: _compared(name, a[name], b[name]) for name in a}
    for one, adjusted in zip(found.values(), holm([one["paired"]["p_value"] for one in found.values()]), strict=True):
        one["p_holm"] = adjusted
    return {"models": list(names), "tasks": found}


def _compared(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    ids = [[example["id"] for example in task["examples"]] for task in (a, b)]
    if ids[0] != ids[1] or a.get("digest") != b.get("digest"):
        said = (
            f"{len(ids[0]):,} and {len(ids[1]):,} of them" if len(ids[0]) != len(ids[1]) else "other texts or answers"
        )
        raise InputError(
            f"task {name[:80]}: the examples differ ({said}); expected the same data and settings for both"
        )
    groups = [e["group"] if e.get("group") is not None else (i,) for i, e in enumerate(a["examples"])]
    scores = [[float(example["score"]) for example in task["examples"]] for task in (a, b)]
    return {"first": a["score"], "second": b["score"], "paired": paired(scores[0], scores[1], groups).as_json()}
