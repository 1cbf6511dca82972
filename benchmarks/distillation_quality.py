#!/usr/bin/env python
"""What a teacher teaches: held-out loss of students trained with and without one, with equal data and steps.

    python benchmarks/distillation_quality.py TEACHER [--steps N] [--seeds 0 1 2] [--plot FILE.png] [key=value ...]

Each variant is `maverick train distill_tiny` (or `pretrain_tiny` for `none`) with a seed of its own for weights and
order; `key=value` is passed to all of them. The last line is one JSON object.
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


def held_out(variant: str, seed: int, args: argparse.Namespace, folder: pathlib.Path) -> list[tuple[int, float]]:
    """(step, held-out nats per byte) at each evaluation of one run."""
    run_dir = folder / f"{variant.replace(' ', '_')}-{seed}"
    weighting = VARIANTS[variant]
    words = [f"run.dir={run_dir}", f"run.steps={args.steps}", f"run.seed={seed}", f"checkpoint.every={args.steps}"]
    words += [f"run.eval_every={max(args.steps // args.evaluations, 1)}", "logging.progress=false", *args.overrides]
    if weighting is None:
        config = "pretrain_tiny"
        words = [word for word in words if not word.startswith("objective")]
    else:
        config = "distill_tiny"
        # its own, whole section: nothing of the shipped one's weighting stays
        words += [f"objective.teacher={args.teacher}"]
        words += [f"objective.weighting={weighting.replace('STEPS', str(args.steps))}"]
    command = [sys.executable, "-m", "launch.cli", "train", config, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise WorkerFailed(f"{' '.join(words)}: {done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Curves of every variant and seed, and the verdicts."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {name: {} for name in args.variants}
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for variant in args.variants:
                began = time.time()
                curves[variant][str(seed)] = held_out(variant, seed, args, pathlib.Path(folder))
                final = curves[variant][str(seed)][-1][1]
                print(f"seed {seed}  {variant:<14} {final:.4f}  ({time.time() - began:.0f} s)", file=sys.stderr)
    final = {name: [runs[str(seed)][-1][1] for seed in args.seeds] for name, runs in curves.items()}
    return {
        "benchmark": "distillation_quality",
        "teacher": args.teacher,
        "steps": args.steps,
        "seeds": args.seeds,
        "overrides": args.overrides,
        "held_out": final,
        "mean": {name: sum(values) / len(values) for name, values in final.items()},
        "curves": curves,
    }


def table(result: dict[str, Any]) -> str:
    """Rows of Markdown, best first."""
    rows = ["| weighting | " + " | ".join(f"seed {seed}" for seed in result["seeds"]) + " | mean |"]
    rows.append("|---" * (len(result["seeds"]) + 2) + "|")
    for name in sorted(result["mean"], key=result["mean"].get):
        cells = [*result["held_out"][name], result["mean"][name]]
        rows.append(f"| {name} | " + " | ".join(f"{value:.4f}" for value in cells) + " |")
    return "\n".join(rows)


def plot(result: dict[str, Any], path: str) -> None:
    """Mean held-out loss over steps, one line per variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), constrained_layout=True)
    for name in sorted(result["mean"], key=result["mean"].get, reverse=True):
        runs = list(result["curves"][name].values())
        steps = [step for step, _ in runs[0]]
        means = [sum(run[i][1] for run in runs) / len(runs) for i in range(len(steps))]
        width = 2.5 if name in (NONE, OURS) else 1.2
        axes.plot(steps, means, label=f"{name}: {means[-1]:.3f}", linewidth=width, marker="o", markersize=3)
    axes.set(xlabel="update", ylabel="held-out loss (nats per byte)", title="Students of one teacher, mean of seeds")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("teacher", help="a run directory")
    parser.add_argument("overrides", nargs="*", help="key=value, for every run")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--evaluations", type=int, default=5, help="points of each curve")
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
