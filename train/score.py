"""`maverick score`: what a reward model says of trajectories."""

import json
import pathlib
from typing import Any

from data.policy import read_policy
from data.preferences.turn_labels import LABELS
from data.trajectories.convert import nothing_read
from data.trajectories.reading import Tally, read_trajectories
from data.trajectories.trajectory import Trajectory
from data.trajectories.writing import new_file, require_new
from maverick_jax.errors import InputError
from train.evaluation.reward_checks import checked
from train.evaluation.scorer import Scorer

SHOWN = 20
"""Most trajectories that are printed."""
WRITES = 2
"""The least privilege of a tool that changes something."""


def score(
    checkpoint: str,
    runs: str,
    *,
    out: str | None = None,
    format: str | None = None,
    dialect: str | None = None,
    checks: bool = False,
    policy: str | None = None,
) -> dict[str, Any]:
    """The scores of the trajectories in `runs` (a file or folder), in their order, as JSON values; also written to the
    new file `out`, one object per line. `checks`: also what `reward_checks.checked` finds; tools with a privilege of 2
    or more in the file `policy` change something. Raises InputError for a checkpoint without reward heads, for what
    `read_trajectories` refuses, and if there is no trajectory."""
    if policy is not None and not checks:
        raise InputError(f"policy: {policy}: only checks read it; expected --checks too")
    target = None if out is None else pathlib.Path(out).expanduser()
    if target is not None:
        require_new(target)
    rules = None if policy is None else read_policy(policy).tools
    writes = None if rules is None else {name for name, rule in rules.items() if rule.privilege >= WRITES}
    tally = Tally()
    scorer = Scorer(checkpoint, dialect)
    read = list(read_trajectories(runs, format=format, tally=tally))
    if not read:
        raise InputError(nothing_read(runs, tally))
    found = [_scored(run, scorer) for run in read]
    if target is not None:
        with new_file(target) as file:
            file.writelines(json.dumps(one) + "\n" for one in found)
    more = {} if target is None else {"out": str(target)}
    more |= {"checks": checked(read, lambda run: scorer(run.conversation).reward, writes)} if checks else {}
    return {"checkpoint": checkpoint, "runs": found} | more


def _scored(run: Trajectory, scorer: Scorer) -> dict[str, Any]:
    where, outcome = run.provenance, run.outcome
    known = {"file": where.file, "record": where.record, "id": where.id, "task": where.task,
             "success": outcome.success, "outcome_reward": outcome.reward}  # fmt: skip
    return {name: value for name, value in known.items() if value not in (None, "")} | scorer(
        run.conversation
    ).as_json()


def show(found: dict[str, Any]) -> str:
    """The scores as text: of each run its reward and its worst turn."""
    lines = [_line(one) for one in found["runs"][:SHOWN]]
    if (more := len(found["runs"]) - SHOWN) > 0:
        lines.append(f"and {more:,} more; --out FILE or --json has all")
    for name, value in found.get("checks", {}).items():
        lines.append(f"{name.replace('_', ' ')}: {json.dumps(value)}")
    return "\n".join([*lines, *([f"written to {found['out']}"] if "out" in found else [])])


def _line(one: dict[str, Any]) -> str:
    name = one.get("id") or f"{one.get('file', '')} record {one.get('record', '')}"
    worst = min(one["turns"], key=lambda turn: turn["good"], default=None)
    text = f"{name}: reward {one['reward']:.3f}, estimate {one['estimate']:.3f}"
    if worst is None:
        return text
    label = max(LABELS[1:], key=worst.__getitem__)
    return f"{text}; least good: message {worst['message']}, good {worst['good']:.2f}, {label} {worst[label]:.2f}"
