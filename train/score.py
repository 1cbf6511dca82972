"""`maverick score`: what a reward model says of trajectories."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.policy import read_policy
from data.preferences.turn_labels import LABELS
from data.trajectories.convert import nothing_read
from data.trajectories.reading import Tally, read_trajectories
from data.trajectories.trajectory import Trajectory
from data.trajectories.writing import new_file, require_new
from maverick_jax.errors import InputError
from maverick_jax.inference.engine.lengths import bucket
from maverick_jax.model.heads import Judgements, judgements
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import load_pretrained
from maverick_jax.sharding import single_device_mesh
from maverick_jax.text import Tokenizer, load_tokenizer
from maverick_jax.text.chat import Role, dialect_of, render
from train.evaluation.carried import heads_in
from train.evaluation.reward_checks import checked
from train.objectives.reward import Reward

SHOWN = 20
"""Most trajectories that are printed."""
WRITES = 2
"""The least privilege of a tool that changes something."""


@dataclasses.dataclass(frozen=True)
class RunScore:
    """The scores of one trajectory."""

    reward: float
    """The reward of the whole, in the unit of a Bradley-Terry model: only differences between runs of one task
    count."""
    turns: tuple[tuple[int, tuple[float, ...]], ...]
    """Of each assistant message: its index and a logit for each label."""

    @property
    def turn_rewards(self) -> list[float]:
        """Of each turn: the logit of `good` minus the largest of the others."""
        return [logits[0] - max(logits[1:]) for _, logits in self.turns]

    @property
    def estimate(self) -> float:
        """The reward plus the smallest reward of a turn, which long good beginnings do not raise."""
        return self.reward + min(self.turn_rewards, default=0.0)

    def as_json(self) -> dict[str, Any]:
        odds = lambda logits: {name: _probability(x) for name, x in zip(LABELS, logits, strict=True)}
        turns = [{"message": i, **odds(logits)} for i, logits in self.turns]
        return {"reward": self.reward, "estimate": self.estimate, "turns": turns}


class Scorer:
    """A reward model that scores trajectories, one after the other, on one device."""

    def __init__(self, checkpoint: str, dialect: str | None = None):
        """Raises InputError for a checkpoint without reward heads."""
        self.tokenizer: Tokenizer = load_tokenizer(checkpoint)
        self.dialect = dialect_of(dialect, self.tokenizer).name
        self._mesh = single_device_mesh()
        self._model = load_pretrained(checkpoint, mesh=self._mesh)
        objective = Reward()
        with jax.set_mesh(self._mesh):
            self._heads = heads_in(objective, checkpoint, self._model)
        if len(self._heads) < len(objective.heads(self._model.config, {})):
            raise InputError(f"{checkpoint}: no reward heads for its model; expected a checkpoint of a run with "
                             "objective.kind: reward")  # fmt: skip

    def __call__(self, run: Trajectory) -> RunScore:
        """Raises InputError for a run that the chat format cannot write."""
        rendered = render(run.conversation, self.tokenizer, self.dialect)
        size = rendered.ids.size
        tokens, segments = np.zeros((2, 1, bucket(size)), np.int32)
        tokens[0, :size], segments[0, :size] = rendered.ids, 1
        with jax.set_mesh(self._mesh):
            found = jax.device_get(_judged(self._model, self._heads, jnp.asarray(tokens), jnp.asarray(segments)))
        own = [i for i, step in enumerate(run.steps) if step.message.role is Role.ASSISTANT]
        ends = [(i, int(np.flatnonzero(rendered.messages == i)[-1])) for i in own]
        turns = tuple((i, tuple(found.turns[0, at].tolist())) for i, at in ends)
        return RunScore(float(found.reward[0, size - 1]), turns)


@jax.jit
def _judged(model: Maverick, heads: dict[str, nnx.Param], tokens: jax.Array, segments: jax.Array) -> Judgements:
    hidden, _ = model.hidden(Inputs(tokens, segment_ids=segments))
    return judgements(hidden, heads, model.rules)


def _probability(logit: float) -> float:
    return float(1 / (1 + np.exp(-np.float64(logit))))


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
    more |= {"checks": checked(read, lambda run: scorer(run).reward, writes)} if checks else {}
    return {"checkpoint": checkpoint, "runs": found} | more


def _scored(run: Trajectory, scorer: Scorer) -> dict[str, Any]:
    where, outcome = run.provenance, run.outcome
    known = {"file": where.file, "record": where.record, "id": where.id, "task": where.task,
             "success": outcome.success, "outcome_reward": outcome.reward}  # fmt: skip
    return {name: value for name, value in known.items() if value not in (None, "")} | scorer(run).as_json()


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
