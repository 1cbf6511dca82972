#!/usr/bin/env python
"""Latent thoughts in pointer chasing: right answers of text, latents, pauses and no thoughts, by seed.

    python benchmarks/latent_thoughts.py --work FOLDER [--seeds 0 1 2] [--variants text latents pauses none loops]
        [--plot FILE.png] [--only-plot]

`text`, `latents` and `pauses` continue the text run of their seed (`START` updates). `none` has no thoughts, and spends
all updates and FLOPs on its own rows. `pauses` is trained on the rows of `latents` with `model.latent: null`, so that
the places of latents hold a token. `loops` is trained on the same text and then on the same rows as `pauses`; its
layers all run `LOOPED` times from the first update on, as often as the layers of `latents` in its last stage. Runs that
are there and complete are not repeated. The last line is one JSON object.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from jax.sharding import reshard

from benchmarks.commands import children_seconds, maverick
from data.graders.figures import figure as figure_of
from data.latents import LatentSteps
from data.sources.chain import ChainSource
from data.trajectories.kinds import TokenKind
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import load_pretrained
from maverick_jax.sharding import single_device_mesh
from maverick_jax.text import load_tokenizer
from train.config_files import read_run
from train.flops import flops_of_run

HOPS, SYMBOLS, ROWS, LENGTH = 3, 8, 64, 32
LOOPED = HOPS + 1
START, STAGE, MIX = 800, 300, 0.3
"""Updates of text; updates of each stage, which replaces one more step; share of questions with fewer replaced."""
QUESTIONS, TEST_SEED = 2048, 10_000
TOKENIZER = "bytes_thinking"
LATENT = load_tokenizer(TOKENIZER).controls["<|reasoning_reserved_special_token_0|>"]

MODEL = {
    "base": "tiny",
    "vocab_size": 274,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "no_rope_layer_interval": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 8,
    "num_local_experts": 0,
    "intermediate_size_mlp": 80,
    "attention_chunk_size": None,
    "compute_dtype": "float32",
    "rope_theta": 100.0,
    "initializer_range": 0.08,
}
"""98,880 parameters, and 4,097 of the feedback. The base of the rotary angles fits rows of 32 tokens."""
OPTIMIZER = {
    "learning_rate": 3e-3,
    "warmup_steps": 50,
    "weight_decay": 0.0,
    "schedule": "wsd",
    "decay_fraction": 0.3,
    "min_ratio": 0.1,
}


# ---- the runs --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive updates of a run on one form of the questions."""

    updates: int
    replaced: int = 0
    """Steps of the thought that latents, or pauses, take the place of."""
    thoughts: bool = True

    def data(self, seed: int, number: int) -> dict[str, Any]:
        """The questions are new in each part: those of another corpus."""
        chain = {"kind": "chain", "documents": self.updates * ROWS, "symbols": SYMBOLS, "hops": HOPS}
        chain |= {"thoughts": self.thoughts, "corpus_seed": 100 * seed + number, "held_out_fraction": 0.0}
        chain |= {"latents": {"replaced": self.replaced, "mix": MIX if self.replaced else 0.0}}
        return {"sources": {f"chain_{number}": chain}, "kind_weights": {"control": 0}}


STAGES = tuple(Part(STAGE, replaced) for replaced in range(1, HOPS + 1))
PASSES = sum(part.updates * (1 + part.replaced) for part in STAGES)
"""Forward and backward passes of the stages of `latents`, each as many as an update without latents has."""
SAME_FLOPS = PASSES - len(STAGES) * STAGE
"""Further updates with which a variant without latents has the FLOPs of `latents`."""


def variants(start: int) -> dict[str, tuple[Part, ...]]:
    """What each run is trained on, with `start` updates of text; ` same FLOPs` go on from the run of that name."""
    return {
        "start": (Part(start),),
        "text": (Part(len(STAGES) * STAGE),),
        "latents": STAGES,
        "pauses": STAGES,
        "pauses, same FLOPs": (Part(SAME_FLOPS, HOPS),),
        "none": (Part(start + len(STAGES) * STAGE, thoughts=False),),
        "none, same FLOPs": (Part(SAME_FLOPS, thoughts=False),),
        "loops": (Part(start), *STAGES),
    }


VARIANTS = variants(START)
GOES_ON = {"text": "start", "latents": "start", "pauses": "start", "pauses, same FLOPs": "pauses",
           "none, same FLOPs": "none"}  # fmt: skip


def run_config(variant: str, seed: int, work: pathlib.Path) -> dict[str, Any]:
    """The whole config of a run."""
    parts, model = VARIANTS[variant], dict(MODEL)
    if variant in GOES_ON:
        model["init_from"] = str(folder(GOES_ON[variant], seed, work))
    if variant == "loops":
        model["loops"] = {"periods": [0, 1], "times": LOOPED}
    stages = []
    for number, part in enumerate(parts, start=10 * list(VARIANTS).index(variant)):
        stage: dict[str, Any] = {"name": f"replaced_{part.replaced}", "steps": part.updates}
        stage["data"] = part.data(seed, number)
        if variant == "latents":
            stage["model"] = {"latent": {"token_id": LATENT, "passes": part.replaced}}
        stages.append(stage)
    latent = {"token_id": LATENT, "passes": HOPS} if variant == "latents" else None
    return {
        "run": {"name": "chain", "dir": str(folder(variant, seed, work)), "seed": seed},
        "model": model | {"latent": latent},
        "data": {"tokenizer": TOKENIZER, "batch_size": ROWS, "sequence_length": LENGTH},
        "objective": "trajectory",
        "optimizer": OPTIMIZER,
        "checkpoint": {"every": STAGE, "keep": 1},
        "logging": {"every": 50, "progress": False},
        "stages": stages,
    }


def folder(variant: str, seed: int, work: pathlib.Path) -> pathlib.Path:
    return work / f"{variant.replace(', ', '_').replace(' ', '_')}-{seed}"


def trained(variant: str, seed: int, work: pathlib.Path) -> float:
    """Trains what is missing of a run; its CPU seconds."""
    return trained_run(run_config(variant, seed, work), folder(variant, seed, work))


def trained_run(config: dict[str, Any], run_dir: pathlib.Path) -> float:
    """Trains what is missing of the run of `config` in `run_dir`; its CPU seconds."""
    record, path = run_dir.with_suffix(".json"), run_dir.with_suffix(".yaml")
    if not record.is_file():
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        before = children_seconds()
        maverick("train", str(path))
        record.write_text(json.dumps({"cpu_seconds": children_seconds() - before}))
    return json.loads(record.read_text())["cpu_seconds"]


def flops(variant: str, seed: int, work: pathlib.Path) -> float:
    """Training FLOPs of a run with those that it goes on from, as `maverick plan` counts them, padding included."""
    config = read_run(str(folder(variant, seed, work).with_suffix(".yaml")))
    ends = [0, *(part.run.steps for part in config.in_stages)]
    updates = [end - begin for begin, end in itertools.pairwise(ends)]
    parts = [sum(flops_of_run(part, {}).values()) for part in config.in_stages]
    own = ROWS * LENGTH * sum(n * per_token for n, per_token in zip(updates, parts, strict=True))
    return own + (flops(GOES_ON[variant], seed, work) if variant in GOES_ON else 0.0)


# ---- right answers ---------------------------------------------------------------------------------------------------

Change = Callable[[jax.Array, jax.Array], jax.Array]
"""(what the first layer reads [B, T, D], which places are latents bool[B, T, 1]) -> what it reads instead."""


def zeroed(x: jax.Array, is_latent: jax.Array) -> jax.Array:
    return jnp.where(is_latent, 0.0, x)


def shuffled(x: jax.Array, is_latent: jax.Array) -> jax.Array:
    """Every question reads the latents of the question before it in the batch."""
    other = jnp.concatenate([x[-1:], x[:-1]])
    return jnp.where(is_latent, other, x)


def kept(x: jax.Array, is_latent: jax.Array) -> jax.Array:
    return x


@functools.partial(jax.jit, static_argnames="change")
def chosen(model: Maverick, tokens: jax.Array, change: Change) -> jax.Array:
    """The likeliest next token at every place, int32[B, T]."""
    inputs = Inputs(tokens)
    forward, x = model.through(inputs), model.embed_inputs(inputs)
    if model.config.latent:
        x = model.latent.filled(x, inputs, model.embed[...], lambda x: forward(x).hidden)
    x = change(x, (tokens == LATENT)[..., None])
    logits = jnp.einsum("BTD,DV->BTV", forward(x).hidden, model.output_weight())
    return jnp.argmax(reshard(logits, jax.P()), axis=-1)


def right(model: Maverick, replaced: int, thoughts: bool, change: Change = kept) -> float:
    """Fraction of right answers of new questions. The model writes thought and answer itself, each token the likeliest;
    latents and control tokens stand where they do in training."""
    source = ChainSource(documents=QUESTIONS, symbols=SYMBOLS, hops=HOPS, thoughts=thoughts, corpus_seed=TEST_SEED,
                         latents=LatentSteps(replaced=replaced))  # fmt: skip
    (block,) = source.blocks("test", load_tokenizer(TOKENIZER))
    expected, kinds = block.ids.reshape(QUESTIONS, -1), block.kinds.reshape(QUESTIONS, -1)[0]
    tokens = expected.copy()
    written = np.flatnonzero(np.isin(kinds, (TokenKind.THOUGHT, TokenKind.FINAL_ANSWER)))
    tokens[:, written] = 0
    with jax.set_mesh(single_device_mesh()):
        for place in written:
            tokens[:, place] = np.asarray(chosen(model, jnp.asarray(tokens), change))[:, place - 1]
    return float(np.mean(tokens[:, -1] == expected[:, -1]))


def measured(variant: str, seed: int, work: pathlib.Path) -> dict[str, Any]:
    """The run's right answers, and of `latents` also with other latents than its own."""
    part, run_dir = VARIANTS[variant][-1], folder(variant, seed, work)
    model = load_pretrained(run_dir)
    found = {"right": right(model, part.replaced, part.thoughts)}
    if variant == "latents":
        found |= {f.__name__: right(model, part.replaced, True, f) for f in (zeroed, shuffled)}
        checkpoints = {int(path.name): path for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit()}
        for step, path in sorted(checkpoints.items()):
            found[f"after {step}"] = right(load_pretrained(path), step // STAGE, True)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    curve = [[line["step"], line["kind_loss"].get("final_answer")] for line in lines if "kind_loss" in line]
    found |= {"flops": flops(variant, seed, work), "updates": sum(part.updates for part in VARIANTS[variant])}
    return found | {"answer_loss": curve}


def plot(runs: Sequence[dict[str, Any]], path: str) -> None:
    """Right answers by variant: a dot per seed, the mean with Student's 95% interval over seeds, and the guess."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = [(run["variant"], run["right"]) for run in runs]
    bars += [(f"latents {name}", run[name]) for run in runs for name in ("zeroed", "shuffled") if name in run]
    names = list(dict.fromkeys(name for name, _ in bars))
    figure, panel = pyplot.subplots(figsize=(9, 3.6), constrained_layout=True)
    for at, name in enumerate(names):
        values = [value for other, value in bars if other == name]
        mean = figure_of(values)
        panel.bar(at, mean.value, color="#9bb7d4")
        if len(set(values)) > 1:  # equal ones, such as 1, look like yes and no
            panel.vlines(at, *np.clip([mean.low, mean.high], 0, 1), color="#7a8fa6", linewidth=5, alpha=0.5)
        panel.plot([at] * len(values), values, "o", color="#1f3b57", markersize=4)
    panel.axhline(1 / (SYMBOLS - 1), color="gray", linewidth=0.8, linestyle="--")
    panel.set(ylabel="right answers", ylim=(0, 1.04), xticks=range(len(names)))
    panel.set_xticklabels([name.replace(", ", "\n").replace(" ", "\n", 1) for name in names], fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for the runs")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--start", type=int, default=START, help="updates of text before the variants part")
    parser.add_argument("--plot", help="a PNG file to write")
    parser.add_argument("--only-plot", action="store_true", help="train nothing; read the runs that are there")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    VARIANTS.update(variants(args.start))
    runs = []
    for seed in args.seeds:
        for variant in args.variants:
            if args.only_plot and not folder(variant, seed, args.work).with_suffix(".json").is_file():
                continue
            seconds = trained(variant, seed, args.work)
            run = {"variant": variant, "seed": seed, "cpu_seconds": seconds, **measured(variant, seed, args.work)}
            more = {name: round(value, 3) for name, value in run.items() if isinstance(value, float)}
            print(f"{variant}, seed {seed}: {more}", file=sys.stderr, flush=True)
            runs.append(run)
    if args.plot:
        plot(runs, args.plot)
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
