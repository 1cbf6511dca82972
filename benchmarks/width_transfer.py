#!/usr/bin/env python
"""Whether the best learning rate of a narrow model is that of one four times as wide: maximal-update scaling
(`model.base_width`) against the standard form.

    python benchmarks/width_transfer.py --work FOLDER [--seeds 0 1 2] [--widths 32 64 128] [--coarse] [--plot FILE.png]

Models of three widths learn Shakespeare's plays, byte by byte, at several learning rates. Heads, hidden widths and the
residual stream grow alike; heads keep their length. `scaled` takes learning rate and initial weights over from width
BASE; `standard` does not. At BASE both are the same program. A run is judged by its loss on half of the held-out rows,
after the last update, and a rate that was carried over on the other half. The best rate of a width is the lowest point
of a parabola through the losses near the least one, by the logarithm of the rate. Runs that are there are not
repeated. The last line is JSON.
"""

import argparse
import functools
import itertools
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.short_runs import ShortRuns, placed_batches
from maverick_jax.sharding import single_device_mesh
from train.config import RunConfig
from train.config_files import read_config
from train.objectives.base import Context
from train.step import eval_step

BASE = 32
HEAD = 16
FORMS = ("standard", "scaled")
INITIAL = 0.1
"""Standard deviation of the narrow model's initial weights, and of all in the standard form."""
COARSE = [2.0**-k for k in range(9, 3, -1)]
"""Learning rates of the first round."""
ROWS, LENGTH, UPDATES, HELD_OUT = 8, 128, 200, 32
"""Rows of an update and their length; updates; batches of held-out rows."""


def run_config(form: str, width: int, rate: float, seed: int) -> RunConfig:
    """The config of one run."""
    model = {"hidden_size": width, "head_dim": HEAD, "num_attention_heads": width // HEAD,
             "num_key_value_heads": width // (2 * HEAD), "intermediate_size": 2 * width,
             "intermediate_size_mlp": 4 * width, "base_width": BASE if form == "scaled" else "null"}  # fmt: skip
    words = [f"model.{key}={value}" for key, value in model.items()]
    words += [
        f"run.seed={seed}",
        f"run.steps={UPDATES}",
        "model.attention_chunk_size=64",
        f"model.initializer_range={INITIAL}",
        "optimizer.warmup_steps=20",
        f"optimizer.learning_rate={rate}",
    ]
    return read_config("pretrain_tiny", [*words, f"data.batch_size={ROWS}", f"data.sequence_length={LENGTH}"])


@functools.cache
def batches(seed: int, split: str, count: int) -> list[dict[str, jax.Array]]:
    """The first batches of a seed; the same for all widths."""
    return placed_batches(run_config("standard", BASE, 1.0, seed), split, count)


@functools.cache
def programs(form: str, width: int) -> tuple[ShortRuns, Any]:
    """Runs of a form and width; (model, batch) -> sums over a batch of held-out rows."""
    config = run_config(form, width, 1.0, 0)
    judge = functools.partial(eval_step, objective=config.objective)
    return ShortRuns(config), jax.jit(lambda model, batch: judge(model, batch, Context(jnp.int32(0), {}, {})))


def learned(form: str, width: int, rate: float, seed: int, work: pathlib.Path) -> dict[str, Any]:
    """Trains and judges one model, unless its record is there. At the base width the forms share a record."""
    form = "scaled" if width == BASE else form
    record = work / f"{form}-{width}-{rate:.6f}-{seed}.json"
    if record.is_file():
        return json.loads(record.read_text())
    begun, config = time.process_time(), run_config(form, width, rate, seed)
    runs, judge = programs(form, width)
    model, losses = runs.train(config, batches(seed, "train", UPDATES))
    with jax.set_mesh(single_device_mesh()):
        sums = jax.device_get([judge(model, batch) for batch in batches(0, "eval", HELD_OUT)])
    means = [config.objective.evaluation_metrics(one)["loss"] for one in sums]
    result = {"form": form, "width": width, "rate": rate, "seed": seed, "choosing": float(np.mean(means[0::2])),
              "judging": float(np.mean(means[1::2])), "last_losses": float(np.mean(losses[-20:])),
              "cpu_seconds": time.process_time() - begun}  # fmt: skip
    record.write_text(json.dumps(result))
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


# ---- the best rate ---------------------------------------------------------------------------------------------------

Runs = Mapping[float, Sequence[dict[str, Any]]]
"""The runs of one form and width by rate, one per seed."""


def optimum(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at the lowest point of the parabola, by the logarithm of the rate, through the losses of rates within a
    factor of 2 of the best one. At an end of the rates, or where the parabola has no lowest point, the best one."""
    best = int(np.argmin(losses))
    near = [i for i, rate in enumerate(rates) if abs(math.log2(rate / rates[best])) < 1.01]
    if best in (0, len(rates) - 1) or len(near) < 3:
        return rates[best]
    places = [math.log2(rates[i] / rates[best]) for i in near]
    bend, slope, _ = np.polyfit(places, [losses[i] for i in near], 2)
    return rates[best] * 2.0 ** float(np.clip(-slope / (2 * bend), -1, 1)) if bend > 0 else rates[best]


def best_of(runs: Runs) -> dict[str, Any]:
    """The best rate by the mean of the seeds, and by each seed."""
    rates = sorted(runs)
    by_seed = [[runs[rate][i]["choosing"] for rate in rates] for i in range(len(runs[rates[0]]))]
    mean = np.mean(by_seed, axis=0)
    return {
        "rate": optimum(rates, mean.tolist()),
        "of_seeds": [optimum(rates, losses) for losses in by_seed],
        "on_grid": rates[int(np.argmin(mean))],
        "loss": float(mean.min()),
    }


def summary(found: Mapping[tuple[str, int], Runs]) -> list[dict[str, Any]]:
    """By form and width: the best rate, its ratio to that of the base width, and what the base's best rate costs."""
    bests = {key: best_of(runs) for key, runs in found.items()}
    lines = []
    for (form, width), best in bests.items():
        base = bests[form, BASE]
        judged = lambda rate, runs=found[form, width]: np.array([run["judging"] for run in runs[rate]])
        ratios = [one / other for one, other in zip(best["of_seeds"], base["of_seeds"], strict=True)]
        cost = judged(base["on_grid"]) - judged(best["on_grid"]) if base["on_grid"] in found[form, width] else []
        lines.append({"form": form, "width": width, **best, "ratio": best["rate"] / base["rate"],
                      "ratios_of_seeds": ratios, "cost_of_base_rate": list(map(float, cost))})  # fmt: skip
    return lines


def plot(found: Mapping[tuple[str, int], Runs], path: str) -> None:
    """Held-out loss by rate, a line per width through the means of seeds, and the best rates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True, constrained_layout=True)
    titles = {"standard": "standard form", "scaled": f"maximal-update scaling from width {BASE}"}
    widths = sorted({width for _, width in found})
    for (form, width), runs in found.items():
        panel, color = panels[FORMS.index(form)], pyplot.get_cmap("viridis")(0.8 * widths.index(width) / len(widths))
        rates, best = sorted(runs), best_of(runs)
        losses = [[run["choosing"] for run in runs[rate]] for rate in rates]
        panel.plot(rates, np.mean(losses, axis=1), "-", color=color, label=f"width {width}: best {best['rate']:.4f}")
        for rate, dots in zip(rates, losses, strict=True):
            panel.plot([rate] * len(dots), dots, ".", color=color, markersize=3)
        panel.axvline(best["rate"], color=color, linewidth=0.8, linestyle="--")
    lowest = min(best_of(runs)["loss"] for runs in found.values())
    for form, panel in zip(FORMS, panels, strict=True):
        panel.set(title=titles[form], xscale="log", xlabel="learning rate", ylim=(lowest - 0.03, lowest + 0.75))
        panel.set_xticks(COARSE, [f"{rate:.4f}" for rate in COARSE])
        panel.minorticks_off()
        panel.legend(fontsize=8)
    panels[0].set_ylabel("held-out loss, nats per byte")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for the results")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--widths", nargs="+", type=int, default=[BASE, 2 * BASE, 4 * BASE])
    parser.add_argument("--coarse", action="store_true", help="leave out the rates between the best ones")
    parser.add_argument("--plot", help="a PNG file to write")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, int], dict[float, list[dict[str, Any]]]] = {}
    for form, width in itertools.product(FORMS, args.widths):
        of_rate = lambda rate, form=form, width=width: [learned(form, width, rate, n, args.work) for n in args.seeds]
        runs = found[form, width] = {rate: of_rate(rate) for rate in COARSE}
        if not args.coarse:
            best = best_of(runs)["on_grid"]
            runs |= {rate: of_rate(rate) for rate in (best / math.sqrt(2), best * math.sqrt(2))}
    if args.plot:
        plot(found, args.plot)
    print(json.dumps({"summary": summary(found)}))


if __name__ == "__main__":
    main()
