#!/usr/bin/env python
"""Long context: retrieval by length and depth before and after the stages of `long_context_tiny`, by seed.

    python benchmarks/long_context.py --work FOLDER [--seeds 0 1 2] [--variants rotary same_base short_rows llama4]
        [--plot FOLDER] [--only-plot]

`rotary` is the config as it is. The others share its first stage or differ in one thing: `same_base` keeps the rotary
base of the first stage, `short_rows` changes the base and keeps the rows, `llama4` has layers as in Llama 4. Each
checkpoint at a border is asked for records of the shipped tasks `retrieval`, and has its held-out loss by position in
documents of 4,096 bytes. What is there and complete is not done again. The last line is one JSON object.
"""

import argparse
import json
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import matplotlib
from matplotlib.figure import Figure

from benchmarks.commands import children_seconds, maverick
from data.graders.figures import wilson
from launch.report.heat_map import draw_heat_map

CONFIG = "long_context_tiny"
BORDERS = {"short": 1000, "to_1k": 1150}
"""The steps with which the stages end."""
LLAMA4 = ["model.no_rope_layer_interval=3", "model.attention_chunk_size=64", "model.floor_scale=256"]
SHORT_ROWS = "{sources: {first: null, records: {weight: 7, weight_end: null}}}"
VARIANTS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "rotary": ([], ("short", "to_1k")),
    "same_base": (["stages.1.model.rope_theta=1000"], ("to_1k",)),
    "short_rows": ([f"stages.1.data={SHORT_ROWS}"], ("to_1k",)),
    "llama4": (LLAMA4, ("short", "to_1k")),
}
"""Of each variant, what differs from the config, and the stages at whose end it is asked. Those without a stage `short`
go on from that of `rotary`."""
LINES = {"rotary": "#2563a8", "same_base": "#c9600c", "short_rows": "#7a5195", "llama4": "#1f6f5c"}


# ---- the runs --------------------------------------------------------------------------------------------------------


def folder(variant: str, seed: int, work: pathlib.Path) -> pathlib.Path:
    return work / f"{variant}-{seed}"


def trained(variant: str, seed: int, work: pathlib.Path) -> float:
    """Trains what is missing of a run; its CPU seconds, without those of a stage that it shares."""
    run_dir, (changes, stages) = folder(variant, seed, work), VARIANTS[variant]
    record = run_dir.with_suffix(".train.json")
    if not record.is_file():
        before = children_seconds()
        if "short" not in stages:
            shared = pathlib.Path("checkpoints") / str(BORDERS["short"])
            shutil.copytree(folder("rotary", seed, work) / shared, run_dir / shared, dirs_exist_ok=True)
        maverick("train", CONFIG, f"run.dir={run_dir}", f"run.seed={seed}", "logging.progress=false", *changes)
        record.write_text(json.dumps({"cpu_seconds": children_seconds() - before}))
    return json.loads(record.read_text())["cpu_seconds"]


def measured(variant: str, seed: int, work: pathlib.Path, positions: bool) -> dict[str, Any]:
    """By stage: the grids of the tasks, the loss by position if `positions`, and the CPU seconds that asking took."""
    found = {}
    for stage in VARIANTS[variant][1]:
        checkpoint = folder(variant, seed, work) / "checkpoints" / str(BORDERS[stage])
        out = work / f"{variant}-{seed}-{stage}"
        record = out.with_suffix(".eval.json")
        if not record.is_file():
            before = children_seconds()
            held_out = work / "held_out.yaml"
            held_out.write_text(HELD_OUT)
            maverick("eval", str(checkpoint), "--tasks", "retrieval", "--out", str(out))
            said = maverick("eval", str(checkpoint), str(held_out), "--by-position", "--json") if positions else "{}"
            tasks = json.loads((out / "evaluation.json").read_text())["tasks"]
            grids = {name: task["grid"] for name, task in tasks.items()}
            by_position = json.loads(said).get("loss_by_position")
            spent = children_seconds() - before
            record.write_text(json.dumps({"grids": grids, "loss_by_position": by_position, "cpu_seconds": spent}))
        found[stage] = json.loads(record.read_text())
    return found


HELD_OUT = f"""base: {CONFIG}
run: {{steps: 1, eval_every: 1, eval_batches: 8}}
stages: []
data:
  batch_size: 4
  sequence_length: 4096
  sources:
    tinyshakespeare: null
    first: null
    records: {{kind: retrieval, documents: 40, characters: 4094, sentences: 0.3, corpus_seed: 1000, weight_end: null,
      held_out_fraction: 0.8}}
"""
"""Documents of 4,096 bytes that no run reads."""


# ---- tables and plots ------------------------------------------------------------------------------------------------


def pooled(grids: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The grid over several seeds: each cell with the share of all their answers, and Wilson's interval."""
    first = grids[0]
    cells = [[_pooled([grid["cells"][x][y] for grid in grids]) for y in range(len(first["depths"]))]
             for x in range(len(first["lengths"]))]  # fmt: skip
    return {"lengths": first["lengths"], "depths": first["depths"], "cells": cells}


def _pooled(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    n = sum(cell["n"] for cell in cells)
    share = sum(cell["value"] * cell["n"] for cell in cells) / n
    low, high = wilson(share, n)
    return {"value": share, "n": n, "low": low, "high": high}


def by_length(grid: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    return {length: _pooled(row) for length, row in zip(grid["lengths"], grid["cells"], strict=True)}


def plot(runs: Sequence[Mapping[str, Any]], into: pathlib.Path) -> None:
    """Heat maps of needles for every variant and stage, and the loss by position, over all seeds that have it."""
    columns = [(variant, stage) for variant in VARIANTS for stage in VARIANTS[variant][1]
               if any(run["variant"] == variant for run in runs)]  # fmt: skip
    of = lambda variant, stage: [run["stages"][stage] for run in runs if run["variant"] == variant]
    with matplotlib.rc_context({"font.size": 8.5, "axes.grid": False}):
        wide = min(3, len(columns))
        high = -(-len(columns) // wide)
        figure = Figure(figsize=(3.6 * wide, 2.3 * high), layout="constrained")
        for i, (variant, stage) in enumerate(columns):
            axes = figure.add_subplot(high, wide, i + 1)
            draw_heat_map(axes, pooled([one["grids"]["needle"] for one in of(variant, stage)]))
            axes.set_title(f"{variant}, after {stage}", fontsize=9)
        figure.savefig(into / "long_context.png", dpi=130)
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.add_subplot(xlabel="position in the document", ylabel="nats per byte")
        styles = {"short": ":", "to_1k": "-"}
        for variant, stage in columns:
            curves = [one["loss_by_position"]["records"] for one in of(variant, stage) if one["loss_by_position"]]
            means = [sum(losses) / len(losses) for losses in zip(*(curve["loss"] for curve in curves), strict=True)]
            axes.plot(curves[0]["ends"], means, styles[stage], color=LINES[variant], label=f"{variant}, {stage}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(curves[0]["ends"], [f"to {end:,}" for end in curves[0]["ends"]])
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(into / "long_context_positions.png", dpi=130)


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Lines of Markdown, by variant and stage, over all seeds: the share of needles found by length, and in the worst
    cell; and that of the records."""
    lines = []
    for variant, (_, stages) in VARIANTS.items():
        for stage in stages:
            found = [run["stages"][stage]["grids"] for run in runs if run["variant"] == variant]
            if not found:
                continue
            grid, records = (pooled([one[name] for one in found]) for name in ("needle", "records"))
            shown = [f"{100 * one['value']:.0f}" for one in by_length(grid).values()]
            worst = min((cell for row in grid["cells"] for cell in row), key=lambda cell: cell["value"])
            least = f"{100 * worst['value']:.0f} ({100 * worst['low']:.0f} to {100 * worst['high']:.0f})"
            among = "/".join(f"{100 * one['value']:.0f}" for one in by_length(records).values())
            what = f"{variant}, after {stage} ({len(found)} seeds)"
            lines.append(f"| {what} | {' | '.join(shown)} | {least} | {among} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for the runs")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--plot", type=pathlib.Path, help="a folder for PNG files")
    parser.add_argument("--only-plot", action="store_true", help="train nothing; read the runs that are there")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in args.seeds:
        for variant in args.variants:
            if args.only_plot and not folder(variant, seed, args.work).with_suffix(".train.json").is_file():
                continue
            seconds = trained(variant, seed, args.work)
            stages = measured(variant, seed, args.work, seed == args.seeds[0])
            runs.append({"variant": variant, "seed": seed, "cpu_seconds": seconds, "stages": stages})
            for stage, one in stages.items():
                shown = {length: round(cell["value"], 2) for length, cell in by_length(one["grids"]["needle"]).items()}
                said = f"{seconds:.0f} s of training, {one['cpu_seconds']:.0f} s of asking"
                print(f"{variant}, seed {seed}, after {stage}: {shown}; {said}", file=sys.stderr, flush=True)
    print(table(runs), file=sys.stderr)
    if args.plot:
        plot(runs, args.plot)
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
