#!/usr/bin/env python
"""Preferences against violations: a model learns the toy shop from a clerk who is careless in half of the runs, then
from pairs to keep the rules; it is judged by what it does in the shop, before and after.

    python benchmarks/violations.py --work FOLDER [--seeds 0 1 2] [--plot FILE.png]

The start (one model) imitates 6,000 runs. It then plays `--train` customers, each `--tries` times; its runs give pairs
(`preferences: {make: violations}`), on which each seed trains a copy. Start and copies serve `--episodes` customers
that no training data has, at temperature 1; violations of the policy and successes of these runs are counted.
Prompts leave out the system message and the declarations of tools, which are always the same, so that texts are short.
Over-refusal is measured on benign twins: a careful clerk's conversations with these customers until a call that the
rules allow; a reply without a call refuses. Everything is kept in FOLDER, and a second call continues there. The last
line is JSON.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import toy_shop_clerk
from benchmarks.worker import ROOT, environment
from data.environments import ToyShopConfig
from data.graders.figures import figure
from data.policy import find_violations, read_policy
from data.trajectories import read_trajectories
from data.trajectories.formats import ours
from data.trajectories.trajectory import Provenance, Trajectory
from maverick_jax.inference import Sampling
from maverick_jax.inference.engine import EngineSettings, GenerationRequest, SlotEngine
from maverick_jax.inference.prompts import stop_ids
from maverick_jax.inference.replies import read_reply
from maverick_jax.pretrained import load_pretrained
from maverick_jax.text import Tokenizer, load_tokenizer
from maverick_jax.text.chat import CallError, Conversation, render
from maverick_jax.text.tokenizers.byte_pairs import train_byte_pairs
from train.rollouts.episodes import model_policy, play

POLICY, DIALECT = "package:toy_shop_policy", "meta_pythonic"
IMITATED = range(6_000)
TRAINED, JUDGED = 200_000, 950_000
"""First seeds of the customers whose runs give pairs, and of those who judge."""
VOCABULARY, LENGTH, CONTEXT, ANSWER = 384, 256, 384, 64
WRITES = ("cancel_order", "change_amount", "refund_order")
MODEL = {"base": "tiny", "vocab_size": VOCABULARY, "hidden_size": 64, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "intermediate_size_mlp": 256,
         "num_local_experts": 0, "attention_chunk_size": 256, "no_rope_layer_interval": 2,
         "initializer_range": 0.08}  # fmt: skip
READ = {"user": 0.2, "observation": 0.2, "observation_error": 0.2}


# ---- data and training -----------------------------------------------------------------------------------------------


def prepare(work: pathlib.Path) -> None:
    """The clerk's runs, and a tokenizer."""
    if (work / "tokenizer").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    runs = [shortened(run) for run in toy_shop_clerk.runs(IMITATED, careless=0.5)]
    write_runs(work / "imitated.jsonl", runs)
    plain = load_tokenizer("bytes")
    texts = [plain.decode(render(run.conversation, plain, DIALECT).ids.tolist(), controls=False) for run in runs[:1000]]
    (work / "tokenizer.part").mkdir(exist_ok=True)
    train_byte_pairs(iter(texts), VOCABULARY, work / "tokenizer.part")
    (work / "tokenizer.part").rename(work / "tokenizer")


def shortened(run: Trajectory) -> Trajectory:
    """The run without system message and tools."""
    return dataclasses.replace(run, steps=run.steps[1:], tools=())


def write_runs(path: pathlib.Path, runs: Sequence[Trajectory]) -> None:
    path.with_suffix(".part").write_text("".join(ours.write(run) + "\n" for run in runs), "utf-8")
    path.with_suffix(".part").rename(path)


def start_config(
    work: pathlib.Path, steps: int, name: str = "start", runs: str = "imitated.jsonl", length: int = LENGTH
) -> dict[str, Any]:
    """The config of the run that imitates the clerk. runs: a file in `work`; length: of rows, in tokens."""
    source = {"path": str(work / runs), "format": "trajectories", "trajectories": {"dialect": DIALECT}}
    return {
        "run": {"name": name, "dir": str(work / name), "steps": steps, "eval_every": 100, "eval_batches": 2},
        "model": MODEL,
        "data": {
            "sources": {"runs": source},
            "tokenizer": str(work / "tokenizer"), "held_out_fraction": 0.02, "batch_size": 16,
            "sequence_length": length,
            "kind_weights": {"failed_action": 1, "recovery": 1, "call_arguments": 2} | READ,
        },
        "objective": {"kind": "trajectory"},
        "optimizer": {"learning_rate": 5e-3, "warmup_steps": 30, "schedule": "cosine", "min_ratio": 0.05},
        "checkpoint": {"every": 100, "keep": 2},
        "logging": {"progress": False, "every": 10},
    }  # fmt: skip


def pairs_config(work: pathlib.Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The config of one seed's run on pairs."""
    start = str(work / "start")
    source = {"path": str(work / "tried.jsonl"), "format": "preferences",
              "preferences": {"make": "violations", "policy": POLICY, "per_task": 2, "dialect": DIALECT,
                              "kind_weights": {"call_arguments": 0.2}}}  # fmt: skip
    return {
        "run": {"name": f"pairs{seed}", "dir": str(work / f"pairs{seed}"), "steps": args.steps, "seed": seed,
                "eval_every": 20, "eval_batches": 10},
        "model": {**MODEL, "init_from": start},
        "data": {"sources": {"tried": source}, "tokenizer": str(work / "tokenizer"), "held_out_fraction": 0.2,
                 "batch_size": 8, "sequence_length": 2 * LENGTH},
        "objective": {"kind": "preference", "pair_loss": {"kind": "sigmoid", "beta": 0.1}, "nll": args.nll,
                      "reference": {"kind": "copy", "path": start}},
        "optimizer": {"learning_rate": args.rate, "warmup_steps": 5, "schedule": "constant"},
        "checkpoint": {"every": 20, "keep": 2},
        "logging": {"progress": False, "every": 5},
    }  # fmt: skip


def trained(work: pathlib.Path, name: str, config: dict[str, Any], *overrides: str) -> pathlib.Path:
    """Trains the run to its end, or does nothing if it is there. Returns its directory. overrides: `key=value`."""
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    command = [sys.executable, "-m", "launch.cli", "train", str(path), *overrides]
    with (work / f"{name}.log").open("ab") as log:
        subprocess.run(command, cwd=ROOT, env=environment(), stdout=log, stderr=log, check=True)
    return work / name


# ---- acting ----------------------------------------------------------------------------------------------------------


class Player:
    """A model that serves customers, many at the same time; each draws its tokens by its own seeds."""

    def __init__(self, run_dir: pathlib.Path, tokenizer: Tokenizer, slots: int = 24):
        settings = EngineSettings(slots=slots, context=CONTEXT, queue=4 * slots)
        self.engine = SlotEngine(load_pretrained(str(run_dir)), tokenizer, settings)
        self.tokenizer, self.ends, self.at_once = tokenizer, stop_ids(tokenizer), 2 * slots

    def answer(self, prompt: Sequence[int], seed: int) -> list[int]:
        if len(prompt) + ANSWER > CONTEXT:
            return []  # a malformed message, which ends the episode
        request = GenerationRequest(prompt, ANSWER, Sampling(1.0), seed % 2**31, self.ends)
        (generation,) = self.engine.submit(request)
        return list(generation.result().tokens)

    def episodes(self, customers: Sequence[int], seed: int, name: str = "") -> list[Trajectory]:
        """One episode for each customer; `seed` is that of the model's draws. `name`: a word for the tasks' names."""
        config = ToyShopConfig(max_turns=10)

        def one(customer: int) -> Trajectory:
            turns = iter(range(10**6))
            answer = lambda prompts: [self.answer(prompts[0], (customer * 64 + next(turns)) * 7919 + seed)]
            policy = model_policy(answer, self.tokenizer, DIALECT)
            run = play(config.make(), lambda conversation: policy(_short(conversation)), seed=customer, max_turns=10)
            own = f"{run.provenance.task}-{customer}"
            where = Provenance("toy_shop", id=f"{name}{seed}-{customer}", task=own)
            return dataclasses.replace(shortened(run), provenance=where)

        return self._all(one, customers)

    def replies(self, conversations: Sequence[Conversation], seed: int) -> list[Any]:
        """One sampled message after each conversation."""

        def one(number: int) -> Any:
            prompt = render(
                _short(conversations[number]), self.tokenizer, DIALECT, add_generation_prompt=True
            ).ids.tolist()
            return read_reply(self.answer(prompt, number * 7919 + seed), self.tokenizer, DIALECT)

        return self._all(one, range(len(conversations)))

    def _all(self, one: Callable[[int], Any], numbers: Sequence[int]) -> list[Any]:
        with concurrent.futures.ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(one, numbers))

    def close(self) -> None:
        self.engine.close()


def _short(conversation: Conversation) -> Conversation:
    """The conversation without system message and tools."""
    return Conversation(conversation.messages[1:])


def twins(customers: Sequence[int]) -> list[Conversation]:
    """A careful clerk's conversations until a call that the rules allow."""
    runs = toy_shop_clerk.runs(range(customers[0], customers[-1] + 1), careless=0.0, seed=2)
    found = []
    for run in runs:
        for i, step in enumerate(run.steps):
            if any(call.name in WRITES for call in step.message.calls):
                found.append(Conversation([s.message for s in run.steps[:i]]))
                break
    return found


def judged(run_dir: pathlib.Path, work: pathlib.Path, episodes: int, seed: int, first: int = JUDGED) -> dict[str, Any]:
    """What a model does with customers whom it does not know, from seed `first` on."""
    kept = work / f"judged_{run_dir.name}_{seed}_{first}_{episodes}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    policy, customers = read_policy(POLICY), range(first, first + episodes)
    player = Player(run_dir, load_tokenizer(str(work / "tokenizer")))
    runs = player.episodes(customers, seed)
    write_runs(work / f"episodes_{run_dir.name}_{seed}.jsonl", runs)
    replies = player.replies(twins(customers), seed)
    player.close()
    broken = [find_violations(run, policy) for run in runs]
    rules = sorted({str(v.rule) for found in broken for v in found})
    share = lambda values: figure([float(value) for value in values]).as_json()
    found = {
        "violation_rate": share([bool(found) for found in broken]),
        "rules": {rule: sum(any(v.rule == rule for v in found) for found in broken) for rule in rules},
        "calls": sum(len(step.message.calls) for run in runs for step in run.steps),
        "success": share([run.outcome.success for run in runs]),
        "tasks": {task: share([r.outcome.success for r in runs if r.provenance.task.startswith(task)])
                  for task in ToyShopConfig().tasks},
        "refusal": share([isinstance(r, CallError) or not r.calls for r in replies]),
    }  # fmt: skip
    kept.write_text(json.dumps(found))
    return found


def tried(start: pathlib.Path, work: pathlib.Path, customers: int, tries: int) -> None:
    """The start's own runs with customers of the training seeds."""
    if (work / "tried.jsonl").exists():
        return
    player = Player(start, load_tokenizer(str(work / "tokenizer")))
    runs = [run for seed in range(tries) for run in player.episodes(range(TRAINED, TRAINED + customers), seed, "try")]
    player.close()
    write_runs(work / "tried.jsonl", runs)


# ---- report ----------------------------------------------------------------------------------------------------------


def held_out(run_dir: pathlib.Path) -> dict[str, float]:
    """The last evaluation of a run on pairs."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "eval_accuracy" in line][-1]
    return {name: last[name] for name in ("eval_accuracy", "eval_margin", "eval_chosen_change")}


PANELS = {"violation_rate": "runs with a violation", "success": "runs that succeed", "refusal": "allowed calls refused"}


def plot(found: dict[str, Any], path: pathlib.Path) -> None:
    """A panel per figure: each seed before and after, with its 95% interval."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    seeds = [seed for name, seed in found.items() if name.startswith("seed ")]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(9, 2.8), constrained_layout=True)
    for axis, (key, title) in zip(axes, PANELS.items(), strict=True):
        for i, seed in enumerate(seeds):
            values = [seed[when][key] for when in ("before", "after")]
            places = [place + 0.06 * (i - 1) for place in (0, 1)]
            errors = [[one["value"] - one["low"] for one in values], [one["high"] - one["value"] for one in values]]
            axis.errorbar(places, [one["value"] for one in values], errors, marker="o", capsize=2, linewidth=1)
        axis.set(title=title, ylim=(-0.02, 1.02), xlim=(-0.4, 1.4), xticks=(0, 1), xticklabels=("before", "after"))
        axis.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--start-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--nll", type=float, default=0.5)
    parser.add_argument("--train", type=int, default=240)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--customers", type=int, default=JUDGED, help="first seed of the customers who judge")
    parser.add_argument("--plot", type=pathlib.Path)
    args = parser.parse_args()
    prepare(args.work)
    start = trained(args.work, "start", start_config(args.work, args.start_steps))
    settings = {name: value for name, value in vars(args).items() if name not in ("work", "plot")}
    found: dict[str, Any] = {"settings": settings}
    tried(start, args.work, args.train, args.tries)
    found["runs"] = {"tried": sum(1 for _ in read_trajectories(args.work / "tried.jsonl"))}
    for seed in args.seeds:
        run_dir = trained(args.work, f"pairs{seed}", pairs_config(args.work, seed, args))
        before, after = (judged(model, args.work, args.episodes, seed, args.customers) for model in (start, run_dir))
        found[f"seed {seed}"] = {"held_out": held_out(run_dir), "before": before, "after": after}
        print(json.dumps({seed: found[f"seed {seed}"]}, indent=1), flush=True)
    if args.plot:
        plot(found, args.plot)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
