#!/usr/bin/env python
"""Does the model learn to see? Train `multimodal_tiny` and a twin to which every picture is white, and ask both about
charts that neither has seen.

    python benchmarks/multimodal_tiny.py --work FOLDER [--seeds 0 1 2] [--charts 500] [--plot FILE.png]
        [--examples FILE.png] [key=value ...]

The twin has equal data, order, steps and rates. Charts for the questions are drawn from another seed than those of
training, none equals one of those, and no setting was chosen with them. Each has two bars and is shown with its first
question; answers are greedy. Relaxed accuracy (ChartQA, arXiv 2203.10244): a number may differ by 5%, anything else
must be equal. Intervals are Wilson's, 95%; the paired test is McNemar's, exact, over the same questions. Everything is
kept in FOLDER, and a second call continues there. The last line is one JSON object.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.worker import ROOT, WorkerFailed, environment
from data.graders.documents import relaxed
from data.graders.figures import paired, wilson
from data.pictures.drawn import DrawnPicture, blank, draw
from data.sources.drawn_pictures import DrawnPicturesSource

CONFIG = "multimodal_tiny"
CHARTS_SEED = 20_261_130
"""Of the charts that are asked about; training draws from others."""
BARS_ASKED = 2
TWINS = "sees", "blank"
AT_A_TIME = 50
LONGEST = 12
"""Tokens of an answer; the longest has seven."""


def train(run: pathlib.Path, seed: int, twin: str, words: Sequence[str]) -> None:
    """Train a run to its end; one that is done is left as it is. Raises WorkerFailed."""
    own = [f"run.seed={seed}", f"run.dir={run}"]
    own += [f"data.sources.{name}.blank={str(twin == 'blank').lower()}" for name in sources()]
    command = [sys.executable, "-m", "launch.cli", "train", CONFIG, *own, *words]
    if subprocess.run(command, cwd=ROOT, env=environment(), stdout=sys.stderr, check=False).returncode:
        raise WorkerFailed(f"{run}: the run failed")


def charts(count: int) -> list[DrawnPicture]:
    """Those that are asked about: no picture that is trained on is among them."""
    trained = {source.drawn(i).image.tobytes() for source in sources().values() for i in range(source.pictures)}
    drawn = (draw(CHARTS_SEED, number, "charts", side(), BARS_ASKED) for number in itertools.count())
    return list(itertools.islice((one for one in drawn if one.image.tobytes() not in trained), count))


def sources() -> dict[str, DrawnPicturesSource]:
    """Those of the config."""
    from train.config_files import read_config

    return read_config(CONFIG).data.sources


def side() -> int:
    """Pixels along the pictures of the config."""
    return sources()["charts"].side


def answers(run: pathlib.Path, asked: Sequence[DrawnPicture], twin: str) -> list[str]:
    """The run's answer to the first question about each picture."""
    from maverick_jax.images import ImageConfig, ImageTokenIds, batch_tiles, image_tokens, preprocess
    from maverick_jax.inference import Sampling, stop_ids
    from maverick_jax.inference.answers import answers as continued
    from maverick_jax.pretrained import load_pretrained
    from maverick_jax.text import load_tokenizer
    from maverick_jax.text.chat import Conversation, Image, Message, Role, render

    model, tokenizer = load_pretrained(run), load_tokenizer(run)
    config, ids = ImageConfig.of(model.config.vision), ImageTokenIds.of(tokenizer)
    tiles = [preprocess(blank(p.image.width) if twin == "blank" else p.image, config) for p in asked]
    prompts = []
    for picture, shown in zip(asked, tiles, strict=True):
        parts = (Image(image_tokens(shown.grid, ids, config.patches_per_tile)), picture.questions[0][0])
        conversation = Conversation([Message(Role.USER, parts)])
        prompts.append(render(conversation, tokenizer, add_generation_prompt=True).ids.tolist())
    shown = [batch_tiles([one]) for one in tiles]
    written = continued(model, tokenizer, prompts, LONGEST, Sampling(temperature=0), tiles=shown)
    stops = stop_ids(tokenizer)
    return [tokenizer.decode([token for token in tokens if token not in stops]) for tokens in written]


def measure(work: pathlib.Path, seed: int, asked: Sequence[DrawnPicture], words: Sequence[str]) -> dict[str, Any]:
    """One seed's row of the table."""
    right, said = {}, {}
    for twin in TWINS:
        run = work / f"{twin}_{seed}"
        train(run, seed, twin, words)
        kept = run / f"answers_{len(asked)}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(answers(run, asked, twin)))
        said[twin] = json.loads(kept.read_text())
        right[twin] = [relaxed(a, [p.questions[0][1]]) for a, p in zip(said[twin], asked, strict=True)]
    heights = [p.questions[0][0].startswith("How high") for p in asked]
    among = lambda flags: share([found for found, there in zip(right["sees"], flags, strict=True) if there])
    return {
        "seed": seed,
        **{twin: share(right[twin]) for twin in TWINS},
        "sees_heights": among(heights),
        "sees_ranks": among([not flag for flag in heights]),
        "paired": paired(right["blank"], right["sees"]).as_json(),
        "said": said["sees"],
    }


def share(right: Sequence[bool]) -> list[float]:
    """The share of right answers, with the ends of its interval."""
    value = statistics.fmean(right)
    return [value, *wilson(value, len(right))]


def curve(run: pathlib.Path) -> tuple[list[int], list[float]]:
    """(steps, training losses) of a run, each the mean of five lines."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    pairs = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    groups = [pairs[i : i + 5] for i in range(0, len(pairs) - 4, 5)]
    return [group[-1][0] for group in groups], [statistics.fmean(loss for _, loss in group) for group in groups]


def plot(work: pathlib.Path, rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Losses over the steps, and accuracies, of both twins and all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for twin, color in zip(TWINS, ("tab:blue", "tab:gray"), strict=True):
        for number, row in enumerate(rows):
            label = {"sees": "sees the charts", "blank": "sees white pictures"}[twin] if number == 0 else None
            left.plot(*curve(work / f"{twin}_{row['seed']}"), color=color, alpha=0.8, label=label)
        right.scatter([twin] * len(rows), [100 * row[twin][0] for row in rows], color=color, zorder=3)
    left.set(xlabel="step", ylabel="loss, nats per token of an answer", ylim=(0, 1))
    left.legend(frameon=False)
    right.axhline(100 / 9, color="black", linewidth=1, linestyle=":")
    right.annotate("one of nine answers", (0.5, 100 / 9 + 1.5), ha="center", fontsize=9)
    right.set(ylabel="relaxed accuracy on new charts, %", ylim=(0, 100), xlim=(-0.5, 1.5))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def show(asked: Sequence[DrawnPicture], said: Sequence[str], path: pathlib.Path) -> None:
    """The first six charts, and the next two that the model gets wrong, with their questions and its answers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pairs = list(zip(asked, said, strict=True))
    wrong = [(picture, answer) for picture, answer in pairs[6:] if not relaxed(answer, [picture.questions[0][1]])]
    figure, grid = pyplot.subplots(2, 4, figsize=(10.4, 6.4), constrained_layout=True)
    for axes, (picture, answer) in zip(grid.flat, pairs[:6] + wrong[:2], strict=False):
        question, gold = picture.questions[0]
        axes.imshow(picture.image, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(question, fontsize=9)
        mark = "right" if relaxed(answer, [gold]) else f"wrong: {gold}"
        axes.set_xlabel(f"{answer!r} ({mark})", fontsize=9, color="black" if mark == "right" else "tab:red")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--charts", type=int, default=500)
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("--examples", type=pathlib.Path)
    parser.add_argument("--json", action="store_true", help="nothing but the last line on standard output")
    parser.add_argument("words", nargs="*", metavar="key=value", help="overrides of the config, for a shorter run")
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    work = given.work.resolve()
    asked = charts(given.charts)
    rows = [measure(work, seed, asked, given.words) for seed in given.seeds]
    if given.plot:
        plot(work, rows, given.plot)
    if given.examples:
        show(asked, rows[0]["said"], given.examples)
    rows = [{name: value for name, value in row.items() if name != "said"} for row in rows]
    if not given.json:
        print("| seed | sees | sees: heights | sees: highest, lowest | blank | difference | p |\n|" + "---|" * 7)
        for row in rows:
            shares = (row[name] for name in ("sees", "sees_heights", "sees_ranks", "blank"))
            difference = [row["paired"][name] for name in ("difference", "low", "high")]
            cells = " | ".join(f"{x:.1%} [{low:.1%}, {high:.1%}]" for x, low, high in (*shares, difference))
            print(f"| {row['seed']} | {cells} | {row['paired']['p_value']:.1e} |")
    print(json.dumps({"charts": given.charts, "overrides": given.words, "seeds": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
