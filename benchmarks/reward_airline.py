#!/usr/bin/env python
"""A reward model on real airline runs (tau-bench, gpt-4o), judged on tasks that it has not seen, beside trivial rules.

    python benchmarks/reward_airline.py RUNS --work FOLDER [--folds 2] [--steps 60]

Tasks are divided into `--folds` parts. For each part a small model with its own tokenizer learns from the runs of the
others: pairs of runs of one task with different outcome, and successful runs with a mistake in them. Texts are cut, and
system message and tools left out, so that both runs of a pair fit into a row. The last line is JSON.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.violations import MODEL, trained, write_runs
from data.graders.figures import figure
from data.policy import read_policy
from data.preferences.outcomes import of_outcomes
from data.trajectories import read_trajectories
from data.trajectories.trajectory import Provenance, Step, Trajectory
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Role, render
from maverick_jax.text.tokenizers.byte_pairs import train_byte_pairs
from train.evaluation.reward_checks import best_temperature, calibration_error
from train.evaluation.scorer import Scorer

DIALECT, VOCABULARY, LENGTH = "meta_pythonic", 2048, 2048
KEPT = {Role.USER: 80, Role.ASSISTANT: 80, Role.TOOL: 40}
"""Characters of a message's text that are kept."""
POLICY = pathlib.Path(__file__).parent / "tau_airline_policy.yaml"
WRITES = {name for name, rule in read_policy(str(POLICY)).tools.items() if rule.privilege >= 2}


def shortened(run: Trajectory) -> Trajectory:
    """The run without system message and tools, its texts cut. It says nothing of how the run ended."""
    steps = [Step(_cut(step), step.error) for step in run.steps if step.message.role is not Role.SYSTEM]
    where = Provenance("tau_bench", id=run.provenance.id, task=run.provenance.task)
    return Trajectory(steps, (), run.outcome, where)


def _cut(step: Step):
    message = step.message
    text = message.text[: KEPT[message.role]]
    return dataclasses.replace(message, parts=(text,) if text else ())


def writes_of(run: Trajectory) -> int:
    """The number of successful calls that change something."""
    called = [call.name for step in run.steps for call in step.message.calls]
    return sum(name in WRITES for name in called)


TRIVIAL: dict[str, Callable[[Trajectory], float]] = {
    "fewer messages": lambda run: -float(len(run.steps)),
    "wrote nothing": lambda run: -float(writes_of(run) > 0),
    "wrote more": lambda run: float(writes_of(run)),
}


def config(work: pathlib.Path, fold: int, args: argparse.Namespace) -> dict[str, Any]:
    path = str(work / f"learnt{fold}.jsonl")
    source = lambda make, n: {"path": path, "format": "preferences",
                              "preferences": {"make": make, "per_task": n, "dialect": DIALECT}}  # fmt: skip
    return {
        "run": {"name": f"fold{fold}", "dir": str(work / f"fold{fold}"), "steps": args.steps},
        "model": {**MODEL, "vocab_size": VOCABULARY},
        "data": {"sources": {"outcomes": source("outcomes", 16), "mistakes": source("corruptions", 4)},
                 "tokenizer": str(work / "tokenizer"), "held_out_fraction": 0.0, "batch_size": 2,
                 "sequence_length": LENGTH},
        "objective": {"kind": "reward"},
        "optimizer": {"learning_rate": args.rate, "warmup_steps": 5, "schedule": "cosine"},
        "checkpoint": {"every": args.steps, "keep": 1},
        "logging": {"progress": False, "every": 5},
    }  # fmt: skip


def accuracy(gaps: Sequence[float], tasks: Sequence[str]) -> dict[str, Any]:
    """The share of positive gaps; one of 0 counts half."""
    return figure([1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps], tasks).as_json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    original = list(read_trajectories(args.runs))
    needs = {run.provenance.task for run in original if any(
        action.get("name") in WRITES for action in run.extra.get("expected_actions") or ())}  # fmt: skip
    runs = [shortened(run) for run in original]
    tasks = sorted({str(run.provenance.task) for run in runs}, key=int)
    fold_of = {task: i % args.folds for i, task in enumerate(tasks)}
    if not (args.work / "tokenizer").exists():
        plain, part = load_tokenizer("bytes"), args.work / "tokenizer.part"
        texts = [plain.decode(render(run.conversation, plain, DIALECT).ids.tolist()) for run in runs]
        part.mkdir(exist_ok=True)
        train_byte_pairs(iter(texts), VOCABULARY, part)
        part.rename(args.work / "tokenizer")
    rewards = {}
    for fold in range(args.folds):
        learnt = [run for run in runs if fold_of[str(run.provenance.task)] != fold]
        write_runs(args.work / f"learnt{fold}.jsonl", learnt)
        scorer = Scorer(str(trained(args.work, f"fold{fold}", config(args.work, fold, args))), DIALECT)
        held_out = [run for run in runs if fold_of[str(run.provenance.task)] == fold]
        rewards |= {id(run): scorer(run.conversation).reward for run in held_out}
    pairs = list(of_outcomes(runs, 16))
    of = lambda rule: [rule(pair.chosen) - rule(pair.rejected) for pair in pairs]
    every = {"reward model": of(lambda run: rewards[id(run)]), **{name: of(rule) for name, rule in TRIVIAL.items()}}
    names = [pair.task for pair in pairs]
    writing = [i for i, name in enumerate(names) if name in needs]
    gaps = np.array(every["reward model"])
    temperature = best_temperature(gaps)
    found = {
        "pairs": {name: accuracy(values, names) for name, values in every.items()},
        "pairs of tasks that need a write": {
            name: accuracy([values[i] for i in writing], [names[i] for i in writing]) for name, values in every.items()
        },
        "calibration_error": calibration_error(gaps / temperature),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
