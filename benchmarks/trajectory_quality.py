#!/usr/bin/env python
"""Compare loss weights by token kind: tune a tiny pretrained model on real trajectories and evaluate it on other tasks.

    python benchmarks/trajectory_quality.py RUNS.jsonl PROBLEMS.jsonl --work FOLDER [--seeds 0 1 2] [--plot FILE.png]

RUNS holds tau-bench airline trajectories. Those of tasks outside `--held-out` are trained on, each several times with
different ids, so that ids cannot be memorized. PROBLEMS holds gsm8k problems. A model of 3.1M parameters is pretrained
on random tables, which teach it to copy, then also on tinyshakespeare, the problems and random trajectories. It is then
tuned for each seed and variant with equal data, order and steps; a third of the rows are random trajectories again, so
that it keeps the ability to copy. Variants: `equal` gives all tokens the same weight; `kinds` uses the default weights
by kind; `with_failed` also trains on failed calls; `with_context` also trains a little on what users and tools write;
`calls_first` also gives more weight to tool names and decisions; `none` is the pretrained model. Everything is kept in
FOLDER, and a second call continues there; calls for other seeds or variants may run in parallel once the pretrained
model exists. The last line is one JSON object.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import made_up
from benchmarks.worker import ROOT, WorkerFailed, environment
from data.trajectories.decisions import CLASSES
from data.trajectories.formats import ours
from data.trajectories.weights import KindWeights
from maverick_jax.errors import InputError
from maverick_jax.text.tokenizers.byte_level import CONTROLS
from train.config_files import read_config

VOCABULARY = 3072
TABLES, OFFICES = 40_000, 4_000
POLICY = 3  # paragraphs of the policy that are kept; a model of this size cannot use its rules
WHOLE = 12_288  # tokens; longer than the longest trajectory
OTHER_IDS = 4  # copies of each training trajectory, each with other ids
NONE = "none"
READ = {"user": 0.2, "observation": 0.2, "observation_error": 0.2}
WEIGHTS: dict[str, dict[str, float]] = {
    "equal": dict.fromkeys(KindWeights.model_fields, 1.0),
    "kinds": {},
    "with_failed": {"failed_action": 1.0},
    "with_context": {"failed_action": 1.0} | READ,
    "calls_first": {"failed_action": 1.0, "call_name": 3.0, "decision": 2.0} | READ,
}
"""Variant -> changes to the default weights."""
COMPARED = ("equal", "with_context", "kinds", "calls_first")
PINNED = ("held_out", "copy_steps", "pretrain_steps", "steps", "rate")
LOSSES = ("call_name", "call_arguments", "decision")
RATES = {"name_accuracy": "tool name right", "arguments_exact": "all arguments exact"}
MODEL = {
    "base": "tiny",
    "vocab_size": VOCABULARY,
    "attention_chunk_size": 128,
    "no_rope_layer_interval": 2,
    "initializer_range": 0.08,
}
OPTIMIZER = {"warmup_steps": 20, "schedule": "cosine", "min_ratio": 0.05, "weight_decay": 0.1}


def prepare(args: argparse.Namespace) -> None:
    """Write the two parts of RUNS, the texts, a tokenizer trained on the training data, and the configs. Raises
    InputError if `--held-out` leaves no task to train on or to evaluate, for invalid settings, and for a folder that
    was created with other settings, since its runs would resume with these."""
    runs = [json.loads(line) for line in args.runs.read_text("utf-8").splitlines()]
    first, last = args.held_out
    parts = [[run for run in runs if (first <= run["task_id"] <= last) == held_out] for held_out in (False, True)]
    if not all(parts):
        tasks = sorted({run["task_id"] for run in runs})
        raise InputError(
            f"--held-out {first} {last}: expected some of the tasks {tasks[0]} to {tasks[-1]} of {args.runs}"
        )
    work = args.work
    settings = {name: getattr(args, name) for name in PINNED}
    work.mkdir(parents=True, exist_ok=True)
    if (kept := work / "settings.json").exists() and (there := json.loads(kept.read_text())) != settings:
        raise InputError(f"--work {work}: created with {there}, not {settings}; choose another folder")
    for name, config in configs(args).items():
        _write(path := work / f"{name}.yaml", yaml.safe_dump(config, sort_keys=False))
        read_config(str(path))  # so that an invalid learning rate is found before the pretraining
    _write(kept, json.dumps(settings))  # only after validation, so that refused settings do not claim the folder
    lines = [[json.dumps(_without_rules(run)) + "\n" for run in part] for part in parts]
    _write(work / "held_out.jsonl", "".join(lines[1]))
    others = [made_up.renamed(run, seed) for seed, run in enumerate(lines[0] * OTHER_IDS)]
    _write(work / "learnt.jsonl", "".join(others))
    problems = [json.loads(line) for line in args.problems.read_text("utf-8").splitlines()]
    texts = [f"{problem['question']}\n{problem['answer']}\n" for problem in problems]
    for name, every in (("problems", texts), ("tables", made_up.tables(TABLES))):
        _write(work / f"{name}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in every))
    _write(work / "offices.jsonl", "".join(ours.write(run) + "\n" for run in made_up.offices(OFFICES)))
    if not (tokenizer := work / "tokenizer" / "tokenizer.json").exists():
        tokenizer.parent.mkdir(exist_ok=True)
        _tokenizer([*texts, *made_up.tables(2_000), *_texts(parts[0])]).save(str(tokenizer))


def configs(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Name -> config of each of the three consecutive runs."""
    file = lambda name, **more: {"path": str(args.work / f"{name}.jsonl"), **more}
    # A new mapping for each source: a shared one would become an anchor in the YAML, which configs do not allow.
    as_tau_bench = lambda: {"format": "trajectories",
                            "trajectories": {"format": "tau_bench", "dialect": "meta_pythonic"}}  # fmt: skip
    tables = {"tables": file("tables")}
    texts = {
        "shakespeare": {"path": "package:tinyshakespeare", "weight": 0.5},
        "problems": file("problems", weight=0.5),
    }
    calls = lambda **more: {"offices": file("offices", format="trajectories", **more)}
    runs = {
        name: file(name, held_out_fraction=part, **as_tau_bench()) for name, part in (("learnt", 0), ("held_out", 1))
    }

    def config(name: str, steps: int, rate: float, data: dict[str, Any], **more) -> dict[str, Any]:
        return {
            "run": {"name": name, "steps": steps, "eval_batches": 1000},
            "model": MODEL,
            "data": {"tokenizer": str(args.work / "tokenizer"), **data},
            "optimizer": OPTIMIZER | {"learning_rate": rate},
            "checkpoint": {"every": 1000, "keep": 1},
            "logging": {"progress": False, "every": 10},
            **more,
        }

    by_kind = {"objective": {"kind": "trajectory"}}
    short = {"packing": "best_fit", "batch_size": 8, "sequence_length": 256, "sources": tables}
    middle = {"batch_size": 4, "sequence_length": 2048, "sources": texts | calls(weight=3) | tables}
    long = {"batch_size": 4, "sequence_length": 2048, "sources": runs | calls(weight=0.5, held_out_fraction=0)}
    return {
        "copy": config("copying", args.copy_steps, 2e-3, short),
        "pretrain": config("pretrained", args.pretrain_steps, 2e-3, middle, **by_kind),
        "tune": config("tuned", args.steps, args.rate, long, **by_kind),
    }


def _write(path: pathlib.Path, text: str) -> None:
    """Write a file, unless it has this content already, so that caches of it stay valid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def _without_rules(run: dict[str, Any]) -> dict[str, Any]:
    policy, *others = run["traj"]
    return run | {"traj": [policy | {"content": "\n\n".join(policy["content"].split("\n\n")[:POLICY])}, *others]}


def _texts(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Texts and calls of trajectories; the policy, which is the same in all of them, once."""
    yield runs[0]["traj"][0]["content"]
    for run in runs:
        for message in run["traj"][1:]:
            yield message.get("content") or ""
            for call in message.get("tool_calls") or ():
                yield f"{call['function']['name']}({call['function']['arguments']})"


def _tokenizer(texts: Sequence[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE with the chat format's control tokens. Every pair of digits or capitals is a token; otherwise the
    ids in the training data would become tokens, which could be memorized, and other ids would not."""
    pre_tokenizers = tokenizers.pre_tokenizers
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = tokenizers.Regex(r"[0-9A-Z]{1,2}| ?\p{Ll}+| ?[^\s\p{L}\p{N}]+|\s+")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pairs = ["".join(pair) for pair in itertools.product(made_up.SYMBOLS, repeat=2)] * 1_000  # more than other words
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(CONTROLS), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(itertools.chain(texts, pairs), trainer)
    return made


def maverick(*words: str) -> str:
    """Standard output of a `maverick` command. Raises WorkerFailed if it fails."""
    command = [sys.executable, "-m", "launch.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)))
    if done.returncode:
        raise WorkerFailed(f"{' '.join(words)}: {done.stderr[-3000:]}")
    return done.stdout


def train(args: argparse.Namespace, variant: str, seed: int) -> pathlib.Path:
    """The directory of a run, which is trained or resumed if it is not complete."""
    copying, pretrained = args.work / "copying", args.work / "pretrained"
    if variant == NONE:
        _run(args.work / "copy.yaml", copying, args.copy_steps)
        return _run(args.work / "pretrain.yaml", pretrained, args.pretrain_steps, f"model.init_from={copying}")
    words = [f"run.seed={seed}", f"model.init_from={pretrained}"]
    words += [f"data.kind_weights={json.dumps(weights)}"] if (weights := WEIGHTS[variant]) else []
    return _run(args.work / "tune.yaml", args.work / f"{variant}-{seed}", args.steps, *words)


def _run(config: pathlib.Path, directory: pathlib.Path, steps: int, *words: str) -> pathlib.Path:
    if not (directory / "checkpoints" / str(steps)).exists():
        maverick("train", str(config), f"run.dir={directory}", *words)
    return directory


def ask(args: argparse.Namespace, directory: pathlib.Path) -> dict[str, Any]:
    """The result of `maverick eval` on the held-out trajectories, in rows long enough for whole trajectories, since a
    window of a trajectory may lack what its calls refer to. The loss always uses the default weights."""
    kept = directory / f"asked_{args.generate}.json"
    if not kept.exists():
        words = [f"data.sequence_length={WHOLE}", "data.batch_size=1", "--json"]
        words += ["--generate", str(args.generate), "--max-tokens", "192"] if args.generate else []
        output = maverick("eval", str(directory), str(args.work / "tune.yaml"), *words)
        kept.write_text(output.strip().splitlines()[-1])
    return json.loads(kept.read_text())


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate the pretrained model, and each variant and seed of tuning, on the held-out trajectories."""
    found: dict[str, list[dict[str, float]]] = {}
    for variant in dict.fromkeys((NONE, *args.variants)):
        for seed in [0] if variant == NONE else args.seeds:
            figures = summary(ask(args, train(args, variant, seed)))
            found.setdefault(variant, []).append(figures)
            print(f"{variant} {seed}: {figures}", file=sys.stderr, flush=True)
    return {
        "benchmark": "trajectory_quality",
        "copy_steps": args.copy_steps,
        "pretrain_steps": args.pretrain_steps,
        "steps": args.steps,
        "rate": args.rate,
        "seeds": args.seeds,
        "held_out": found,
    }


def summary(evaluation: dict[str, Any]) -> dict[str, float]:
    """Row of the table -> figure. A missing rate (without any case) is 0."""
    found = {f"{kind}, nats": evaluation["eval_kind_loss"][kind] for kind in LOSSES}
    ways: list[tuple[str, str, dict[str, Any]]] = [("", "eval_", evaluation)]
    ways += [(", written", "", evaluation["generated"])] if "generated" in evaluation else []
    for way, prefix, part in ways:
        f1 = part[f"{prefix}decision_f1"]
        found[f"decision F1{way}"] = sum(f1.get(name, 0.0) for name in CLASSES) / len(CLASSES)
        found |= {f"{title}{way}": part[f"{prefix}call_rates"].get(name, 0.0) for name, title in RATES.items()}
    return found


def rows_of(result: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Row of the table -> variant -> a figure for each seed."""
    held_out = result["held_out"]
    return {
        name: {variant: [figures[name] for figures in each] for variant, each in held_out.items()}
        for name in held_out[NONE][0]
    }


def table(result: dict[str, Any]) -> str:
    """A Markdown table with the mean over seeds and the value of each seed."""
    rows = ["| held out | " + " | ".join(result["held_out"]) + " |", "|---" * (len(result["held_out"]) + 1) + "|"]
    for name, variants in rows_of(result).items():
        seeds = lambda each: f" ({' '.join(f'{x:.3f}' for x in each)})" if len(each) > 1 else ""
        cells = [f"{statistics.fmean(each):.3f}{seeds(each)}" for each in variants.values()]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def plot(result: dict[str, Any], path: pathlib.Path) -> None:
    """Plot a panel per row of the table with a dot per seed. The pretrained model's figure is in the title, since it is
    too far from the others for the same axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = rows_of(result)
    wide = 3
    figure, grid = pyplot.subplots(-(-len(rows) // wide), wide, figsize=(12, 2.6 * -(-len(rows) // wide)),
                                   constrained_layout=True, squeeze=False)  # fmt: skip
    for axes, (name, variants) in zip(grid.flat, rows.items(), strict=False):
        tuned = [variant for variant in variants if variant != NONE]
        for column, variant in enumerate(tuned):
            each = variants[variant]
            axes.scatter([column] * len(each), each, s=22, alpha=0.7, zorder=3)
            axes.hlines(statistics.fmean(each), column - 0.25, column + 0.25, color="black", linewidth=1)
        axes.set_title(f"{name} ({NONE}: {statistics.fmean(variants[NONE]):.3f})", fontsize=10)
        axes.set_xticks(range(len(tuned)), labels=tuned)
        axes.set_xlim(-0.6, len(tuned) - 0.4)
        axes.grid(axis="y", alpha=0.3)
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_axis_off()
    figure.suptitle(f"Held-out trajectories after {result['steps']} updates: dots are seeds, lines their means")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("runs", type=pathlib.Path)
    parser.add_argument("problems", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--held-out", type=int, nargs=2, metavar=("FIRST", "LAST"), default=[30, 37],
                        help="tasks that are not trained on")  # fmt: skip
    parser.add_argument("--copy-steps", type=int, default=2000)
    parser.add_argument("--pretrain-steps", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=375)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of tuning")
    parser.add_argument("--generate", type=int, default=0, help="number of held-out turns to generate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plot", type=pathlib.Path, help="a PNG file to write")
    parser.add_argument("--variants", nargs="+", default=COMPARED, choices=WEIGHTS)
    args = parser.parse_args(arguments)
    # Check these before hours of training.
    if min(args.generate, *args.seeds) < 0:
        parser.error("--generate and --seeds: expected numbers from 0")
    if args.plot and not args.plot.absolute().parent.is_dir():
        parser.error(f"--plot {args.plot}: no such folder: {args.plot.absolute().parent}")
    args.work = args.work.absolute()
    try:
        prepare(args)
    except InputError as error:
        parser.error(str(error))
    result = measure(args)
    if args.plot:
        plot(result, args.plot)
    print(table(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
