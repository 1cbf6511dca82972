#!/usr/bin/env python
"""Compare the held-out loss of students trained with and without a teacher, with equal data and steps.

    python benchmarks/distillation_quality.py TEACHER [--steps N] [--seeds 0 1 2] [--plot FILE.png] [key=value ...]

Each variant is `maverick train distill_tiny` (or `pretrain_tiny` for `none`) with a seed for weights and order;
`key=value` overrides are passed to all of them. The last line is one JSON object.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.worker import WorkerFailed

NONE, OURS = "none", "codistill"
FIXED = ("fixed 0.25", "fixed 0.5", "fixed 0.75", "fixed 1")
VARIANTS: dict[str, str | None] = {
    NONE: None,
    **{name: f"{{kind: schedule, start: {name.split()[1]}}}" for name in FIXED},
    "linear 1 to 0": "{kind: schedule, shape: linear, start: 1, end: 0, steps: STEPS}",
    "magnitude": "{kind: magnitude}",
    "confidence": "{kind: confidence}",
    "taid": "{kind: taid, start: 1, interpolation_steps: STEPS}",
    OURS: "{kind: codistill}",
}


def held_out(variant: str, seed: int, args: argparse.Namespace, folder: pathlib.Path) -> float:
    """Held-out loss in nats per byte after the last step of a run."""
    run_dir = folder / f"{variant.replace(' ', '_')}-{seed}"
    weighting = VARIANTS[variant]
    words = [f"run.dir={run_dir}", f"run.steps={args.steps}", f"run.seed={seed}", f"checkpoint.every={args.steps}"]
    words += [f"run.eval_every={args.steps}", "logging.progress=false", *args.overrides]
    if weighting is None:
        config = "pretrain_tiny"
        words = [word for word in words if not word.startswith("objective")]
    else:
        config = "distill_tiny"
        # a whole section, which replaces the shipped weighting
        words += [f"objective.teacher={args.teacher}"]
        words += [f"objective.weighting={weighting.replace('STEPS', str(args.steps))}"]
    command = [sys.executable, "-m", "launch.cli", "train", config, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise WorkerFailed(f"{' '.join(words)}: {done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return lines[-1]["eval_loss"]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Held-out losses of every variant and seed."""
    found: dict[str, dict[str, float]] = {name: {} for name in args.variants}
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for variant in args.variants:
                began = time.time()
                found[variant][str(seed)] = loss = held_out(variant, seed, args, pathlib.Path(folder))
                print(f"seed {seed}  {variant:<14} {loss:.4f}  ({time.time() - began:.0f} s)", file=sys.stderr)
    return {
        "benchmark": "distillation_quality",
        "teacher": pathlib.Path(args.teacher).name,
        "steps": args.steps,
        "seeds": args.seeds,
        "overrides": args.overrides,
        "held_out": found,
    }


def means(result: dict[str, Any]) -> dict[str, float]:
    """Variant -> mean loss over seeds, best first."""
    found = {name: sum(runs.values()) / len(runs) for name, runs in result["held_out"].items()}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def table(result: dict[str, Any]) -> str:
    """A Markdown table, best variant first."""
    rows = ["| weighting | " + " | ".join(f"seed {seed}" for seed in result["seeds"]) + " | mean |"]
    rows.append("|---" * (len(result["seeds"]) + 2) + "|")
    for name, mean in means(result).items():
        losses = [result["held_out"][name].get(str(seed)) for seed in result["seeds"]]
        cells = ["-" if loss is None else f"{loss:.4f}" for loss in (*losses, mean)]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def plot(result: dict[str, Any], path: str) -> None:
    """Plot a row per variant with a dot per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), constrained_layout=True)
    found = means(result)
    place = {name: -row for row, name in enumerate(found)}
    for seed in result["seeds"]:
        rows = [(runs[str(seed)], place[name]) for name, runs in result["held_out"].items() if str(seed) in runs]
        axes.scatter(*zip(*rows, strict=True), s=18, alpha=0.6, label=f"seed {seed}", zorder=3)
    axes.scatter(list(found.values()), list(place.values()), marker="|", s=300, color="black", label="mean", zorder=2)
    axes.set_yticks(list(place.values()), labels=list(place))
    axes.set_xlabel("held-out loss, nats per byte")
    axes.set_title(f"Students after {result['steps']} updates, by weighting of soft and hard targets")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("teacher", help="a run directory")
    parser.add_argument("overrides", nargs="*", help="key=value overrides for every run")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--plot", help="a PNG file to write")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_intermixed_args(arguments)
    args.teacher = os.path.abspath(args.teacher)
    result = measure(args)
    if args.plot:
        plot(result, args.plot)
    if not args.json:
        print(table(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
