#!/usr/bin/env python
"""The second phase: reinforcement learning in the toy shop with a penalty of violations, whose multiplier adapts.

    python benchmarks/second_phase.py --work FOLDER [--start lazy] [--seeds 0 1 2] [--plot FILE.png] [key=value ...]

FOLDER is that of `benchmarks/violations.py`, whose start (a careless clerk) is trained there if it is missing.
`--start` names another one: `lazy` imitates a clerk that turns half of the customers away, and then learns from success
alone; `gullible` imitates one that does what notes on orders say, and learns in the shop with injections. Each seed
learns by GRPO from episodes with customers of its own; start and results then serve `--episodes` customers that no run
has drawn, at temperature 1. `key=value` overrides are passed to all. What is there is not repeated. The last line is
JSON.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import toy_shop_clerk
from benchmarks.overrides import with_overrides
from benchmarks.violations import (
    CONTEXT,
    DIALECT,
    IMITATED,
    JUDGED,
    LENGTH,
    MODEL,
    POLICY,
    judged,
    prepare,
    shortened,
    start_config,
    trained,
    write_runs,
)
from data.trajectories.trajectory import Trajectory


class Start(NamedTuple):
    """A start, and how it goes on."""

    runs: Callable[[range], list[Trajectory]] | None
    """The clerk's runs that it imitates, by seeds; None: those of `benchmarks/violations.py`."""
    shop: str
    """Kind of the environment."""
    penalty: dict[str, float] | None
    tokens: int
    """Most tokens of an episode."""


PENALTY = {"target": 0.02, "start": 1.0, "rate": 0.2}
STARTS = {
    "start": Start(None, "toy_shop", PENALTY, LENGTH),
    "lazy": Start(lambda seeds: toy_shop_clerk.runs(seeds, careless=0.5, turned_away=0.5), "toy_shop", None, LENGTH),
    "gullible": Start(toy_shop_clerk.injected_runs, "injected_shop", PENALTY, CONTEXT),
}
START_STEPS, TURN_TOKENS = 400, 48


def policy_config(work: pathlib.Path, start: str, seed: int, steps: int) -> dict[str, Any]:
    """The config of one seed's run."""
    about = STARTS[start]
    shop = {"kind": about.shop, "declare": False, "max_turns": 10, "policy": POLICY}
    rollouts = {"prompts": 16, "group": 8, "max_tokens": about.tokens, "turn_tokens": TURN_TOKENS, "dialect": DIALECT,
                "learn_from_cut": True, "slots": 64, "write_every": 10}  # fmt: skip
    name = f"{start}-phase{seed}"
    return {
        "run": {"name": name, "dir": str(work / name), "steps": steps, "seed": seed},
        "model": {**MODEL, "init_from": str(work / start), "compute_dtype": "float32", "remat": "none"},
        "data": {"tokenizer": str(work / "tokenizer"), "batch_size": 128, "sequence_length": about.tokens},
        "objective": {"kind": "policy", "method": {"kind": "grpo"}, "environments": {"shop": shop},
                      "rollouts": rollouts, "penalty": about.penalty},
        "optimizer": {"learning_rate": 1.5e-4, "warmup_steps": 5, "schedule": "cosine", "min_ratio": 0.1},
        "checkpoint": {"every": 20, "keep": 2},
        "logging": {"progress": False, "every": 1},
    }  # fmt: skip


def start_of(work: pathlib.Path, start: str) -> dict[str, Any]:
    """The config of a start, whose clerk's runs are written if they are missing."""
    prepare(work)
    about = STARTS[start]
    if about.runs is None:
        return start_config(work, START_STEPS)
    runs = work / f"imitated_{start}.jsonl"
    if not runs.exists():
        write_runs(runs, [shortened(run) for run in about.runs(IMITATED)])
    return start_config(work, START_STEPS, start, runs.name, about.tokens)


def curves(run_dir: pathlib.Path) -> dict[str, list[float]]:
    """What the run's own episodes did, by update."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    sets = [line for line in lines if "success" in line]
    names = [name for name in ("success", "violations", "multiplier", "calls") if name in sets[0]]
    return {name: [line[name] for line in sets] for name in names}


def plot(found: dict[str, Any], path: pathlib.Path) -> None:
    """Success, violations and the multiplier of each seed by update."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {"success": "episodes that succeed", "violations": "episodes with a violation", "multiplier": "multiplier"}
    drawn = {name: title for name, title in names.items() if name in next(iter(found.values()))["curves"]}
    figure, panels = pyplot.subplots(1, len(drawn), figsize=(3.4 * len(drawn), 3), constrained_layout=True)
    for panel, (name, title) in zip(panels, drawn.items(), strict=True):
        for seed in found:
            values = found[seed]["curves"][name]
            panel.plot(range(1, len(values) + 1), values, label=seed, linewidth=1.2)
        panel.set(title=title, xlabel="updates of 128 episodes", ylim=(0, 1) if name == "success" else (0, None))
        panel.grid(axis="y", alpha=0.3)
    panels[0].legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--start", choices=STARTS, default="start")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--customers", type=int, default=JUDGED, help="first seed of the customers who judge")
    parser.add_argument("--plot", type=pathlib.Path)
    args, overrides = with_overrides(parser)
    start = trained(args.work, args.start, start_of(args.work, args.start))
    found: dict[str, Any] = {}
    for seed in args.seeds:
        config = policy_config(args.work, args.start, seed, args.steps)
        run_dir = trained(args.work, config["run"]["name"], config, *overrides)
        before, after = (judged(model, args.work, args.episodes, seed, args.customers) for model in (start, run_dir))
        found[f"seed {seed}"] = {"curves": curves(run_dir), "before": before, "after": after}
        print(json.dumps({seed: {"before": before, "after": after}}, indent=1), flush=True)
    if args.plot:
        plot(found, args.plot)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
