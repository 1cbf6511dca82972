#!/usr/bin/env python
"""Reward models on made pairs of the toy shop: what held-out pairs, natural outcomes and checks say.

    python benchmarks/reward_quality.py --work FOLDER [--seeds 0 1 2]

FOLDER is that of benchmarks/violations.py, whose start is the model that gets reward heads. Pairs are made of a careful
clerk's runs with `--train` customers: mistakes that make the run fail when the shop carries it out again, and
violations that the detector confirms; a fifth of the customers is held out. Then the model judges customers that no
data has: the start's own runs, of which some succeed and some fail, and, where a run needs a change, the same run
without it. The last line is JSON.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import toy_shop_clerk
from benchmarks.violations import DIALECT, JUDGED, LENGTH, MODEL, POLICY, WRITES, shortened, trained, write_runs
from data.preferences.replays import seed_of
from data.trajectories import read_trajectories
from data.trajectories.trajectory import Provenance, Trajectory
from train.evaluation.reward_checks import checked
from train.evaluation.scorer import Scorer

CUSTOMERS = 300_000
"""The first seed of the customers whose runs make pairs."""


def named(run: Trajectory) -> Trajectory:
    """The run, with its customer as its task."""
    task = f"{run.provenance.task}-{run.provenance.id}"
    return dataclasses.replace(shortened(run), provenance=Provenance("toy_shop", id=run.provenance.id, task=task))


def config(work: pathlib.Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    made = {"corruptions": {"replay": {"kind": "toy_shop"}, "per_task": 3},
            "violations": {"policy": POLICY, "per_task": 2}}  # fmt: skip
    source = lambda make, more: {"path": str(work / "careful.jsonl"), "format": "preferences",
                                 "preferences": {"make": make, "dialect": DIALECT, **more}}  # fmt: skip
    return {
        "run": {"name": f"reward{seed}", "dir": str(work / f"reward{seed}"), "steps": args.steps, "seed": seed,
                "eval_every": args.steps // 2, "eval_batches": 12},
        "model": {**MODEL, "init_from": str(work / "start")},
        "data": {"sources": {make: source(make, more) for make, more in made.items()},
                 "tokenizer": str(work / "tokenizer"), "held_out_fraction": 0.2, "batch_size": 8,
                 "sequence_length": 2 * LENGTH},
        "objective": {"kind": "reward"},
        "optimizer": {"learning_rate": args.rate, "warmup_steps": 5, "schedule": "cosine"},
        "checkpoint": {"every": args.steps // 2, "keep": 1},
        "logging": {"progress": False, "every": 5},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=220)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--train", type=int, default=800)
    args = parser.parse_args()
    if not (args.work / "careful.jsonl").exists():
        customers = range(CUSTOMERS, CUSTOMERS + args.train)
        write_runs(args.work / "careful.jsonl", [named(run) for run in toy_shop_clerk.runs(customers, 0.0)])
    natural = [run for path in sorted(args.work.glob("episodes_start_*.jsonl")) for run in read_trajectories(path)]
    natural = [run for run in natural if seed_of(run) < JUDGED + 100]
    clean = [named(run) for run in toy_shop_clerk.runs(range(JUDGED, JUDGED + 100), 0.0)]
    found: dict[str, Any] = {}
    for seed in args.seeds:
        run_dir = trained(args.work, f"reward{seed}", config(args.work, seed, args))
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        scorer = Scorer(str(run_dir), DIALECT)
        reward = lambda run, scorer=scorer: scorer(run.conversation).reward
        checks = {"clean": checked(clean, reward, WRITES)} | (
            {"natural": checked(natural, reward, WRITES)} if natural else {}
        )
        held_out = {k: v for k, v in next(x for x in reversed(lines) if "eval_loss" in x).items() if k != "time"}
        found[f"seed {seed}"] = {"held_out": held_out, **checks}
        print(json.dumps({seed: found[f"seed {seed}"]}, indent=1), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
