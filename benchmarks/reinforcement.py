#!/usr/bin/env python
"""Reinforcement learning in the calculator: sampled success before and after, by method and seed.

    python benchmarks/reinforcement.py --work FOLDER [--methods grpo ppo] [--seeds 0 1 2] [--plot FILE.png]
        [--only-plot] [key=value ...]

Each is `maverick train rl_tiny` with that method and seed, from the same start, `calculator_tiny`, which is trained in
FOLDER if it is missing; `key=value` overrides are passed to all. Start and results then play 512 sums that no run has
drawn, at temperature 1. Runs that are there and complete are not repeated. The last line is one JSON object.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.commands import children_seconds, maverick
from benchmarks.overrides import with_overrides

EDGE = 5
"""Sets of episodes at the end of a run whose success is averaged: 640 episodes."""
HELD_OUT, TASKS = 987_654, 512
"""Seed and number of the sums by which models are judged."""
PPO = "objective.method={kind: ppo, decay: 1.0}"
"""Without a discount over tokens: the reward comes after some 40 of them, and the decision is the first."""


def learned(method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The success of every set of episodes of a run, and its CPU seconds; None if they were not measured."""
    run_dir = args.work / f"{method}-{seed}"
    record = args.work / f"{method}-{seed}.json"
    if not record.is_file() and not args.only_plot:
        of_method = PPO if method == "ppo" else f"objective.method={{kind: {method}}}"
        words = [f"run.dir={run_dir}", f"run.seed={seed}", of_method, *args.overrides]
        words += [f"model.init_from={args.work / 'start'}", "logging.progress=false"]
        before = children_seconds()
        maverick("train", "rl_tiny", *words)
        record.write_text(json.dumps({"cpu_seconds": children_seconds() - before}))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    sets = [line for line in lines if "success" in line]
    curve = {name: [line[name] for line in sets] for name in ("success", "calls", "equal_groups", "sampler_kl")}
    seconds = json.loads(record.read_text())["cpu_seconds"] if record.is_file() else None
    edge = lambda part: sum(part) / len(part)
    return {"method": method, "seed": seed, "updates": len(lines), "cpu_seconds": seconds, **curve,
            "before": sets[0]["success"], "after": edge(curve["success"][-EDGE:]),
            "held_out": held_out(run_dir, args.work / f"{method}-{seed}-judged.json")}  # fmt: skip


def held_out(run_dir: pathlib.Path, kept: pathlib.Path) -> dict[str, Any]:
    """Sampled success on sums that no run has drawn, with its 95% interval; also calls per episode."""
    if kept.is_file():
        return json.loads(kept.read_text())
    from data.environments import CalculatorConfig
    from data.graders.figures import figure
    from maverick_jax.inference.engine import EngineSettings, SlotEngine
    from maverick_jax.pretrained import load_pretrained
    from maverick_jax.text import load_tokenizer
    from train.rollouts.playing import Playing
    from train.rollouts.settings import RolloutSettings

    tokenizer = load_tokenizer("bytes")
    rollouts = RolloutSettings(prompts=TASKS, group=1, max_tokens=96, turn_tokens=32, slots=64)
    playing = Playing(rollouts, {"calculator": CalculatorConfig(declare=False)}, tokenizer, HELD_OUT)
    with SlotEngine(load_pretrained(str(run_dir)), tokenizer, EngineSettings(64, 96, queue=TASKS)) as engine:
        episodes = playing.play(engine, 0)
    success = figure([float(bool(one.outcome.success)) for one in episodes]).as_json()
    found = success | {"calls": sum(one.calls for one in episodes) / TASKS}
    kept.write_text(json.dumps(found))
    return found


def plot(runs: Sequence[dict[str, Any]], path: str) -> None:
    """Success of each run by update, a panel per method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = list(dict.fromkeys(run["method"] for run in runs))
    figure, panels = pyplot.subplots(
        1, len(methods), figsize=(4.5 * len(methods), 3.5), sharey=True, squeeze=False, constrained_layout=True
    )
    for panel, method in zip(panels[0], methods, strict=True):
        for run in (run for run in runs if run["method"] == method):
            panel.plot(range(1, len(run["success"]) + 1), run["success"], label=f"seed {run['seed']}", linewidth=1.2)
        panel.axhline(0.9, color="gray", linewidth=0.8, linestyle="--")
        panel.set(title=method, xlabel="sets of 128 episodes", ylim=(0, 1))
        panel.legend(loc="lower right", frameon=False)
    panels[0][0].set_ylabel("sampled success")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for the runs")
    parser.add_argument("--methods", nargs="+", default=["grpo", "ppo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--plot", help="a PNG file to write")
    parser.add_argument("--only-plot", action="store_true", help="run nothing; read the runs that are there")
    args, args.overrides = with_overrides(parser, argv)
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.only_plot and not (args.work / "start").is_dir():
        command = [sys.executable, "-m", "launch.cli", "train", "calculator_tiny", f"run.dir={args.work / 'start'}"]
        subprocess.run(command, check=True)
    judged = held_out(args.work / "start", args.work / "start-judged.json")
    print(f"start: held out {judged['value']:.3f} ({judged['low']:.3f} to {judged['high']:.3f})", flush=True)
    runs = [learned(method, seed, args) for method in args.methods for seed in args.seeds
            if not args.only_plot or (args.work / f"{method}-{seed}" / "metrics.jsonl").is_file()]  # fmt: skip
    for run in runs:
        name, seconds = f"{run['method']} seed {run['seed']}", run["cpu_seconds"] or float("nan")
        ends, judged = f"{run['before']:.3f} -> {run['after']:.3f}", run["held_out"]
        ends += f", held out {judged['value']:.3f} ({judged['low']:.3f} to {judged['high']:.3f})"
        print(f"{name}: {ends} in {run['updates']} updates, {seconds:.0f} CPU seconds", flush=True)
    if args.plot:
        plot(runs, args.plot)
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
