#!/usr/bin/env python
"""Whether schema heads find declared tools that have left the attention chunk: chains of one and of two calls.

    python benchmarks/schema_heads.py --work FOLDER [--seeds 0 1 2] [--plot FILE.png]
        [--variants heads plain heads_twice plain_twice]

Every row is new. It declares 2 to TOOLS tools as three tokens each, `takes name gives`, in which each type is taken by
one tool and given by one (one random cycle); then words fill the chunk. In the next chunk come REQUESTS requests, each
a number of hops and a type, and the answer: for each hop the tool's name and the type that it takes; or GIVES and a
type, and the answer is what the tool for it gives. Names and types are drawn from larger sets, so that the model can
write names and types that are not declared. The first `--one` updates ask for one hop or GIVES, the next `--two` for
two hops in half of the requests. Judged is the first request of new rows with TOOLS tools: an answer is right if all of
its tokens, written greedily, are. A written call is hallucinated if no declared tool has its name and takes its
argument.

`plain` is the same model, data and updates without heads; `_twice` have twice the updates. Runs that are there are not
repeated. The last line is JSON.
"""

import argparse
import functools
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from data.graders.figures import wilson
from maverick_jax.config import ModelConfig
from maverick_jax.model.transformer import Maverick
from maverick_jax.reasoning import Mark, ReasoningHeads
from maverick_jax.sharding import ShardingRules, single_device_mesh
from train.objectives import Pretrain
from train.optimizers import AdamW
from train.state import init_state
from train.step import train_step
from train.trainable.config import TrainableConfig

TOOLS, NAMES, TYPES, WORDS = 4, 12, 10, 8
GIVES = 3
"""The request for the type that the tool for a type gives: half of a second hop."""
FIRST_NAME, FIRST_TYPE, FIRST_WORD = GIVES + 1, GIVES + 1 + NAMES, GIVES + 1 + NAMES + TYPES
"""Ids: 0 is the end, 1 and 2 are numbers of hops."""
VOCABULARY = FIRST_WORD + WORDS + 1
CHUNK, REQUESTS = 32, 4
"""All requests lie in the second chunk."""
QUESTION, LENGTH = CHUNK, CHUNK + 32
"""Place of the first number of hops; the type comes after it, and then the answer."""
VARIANTS = {"heads": 1, "plain": 1, "heads_twice": 2, "plain_twice": 2}
"""Which models are trained, and with how many times the updates."""
FIRST, SECOND = (1, GIVES), (1, 2, 2, GIVES)
"""Kinds of requests of the first and of the second part of training."""
ROWS, TEST_ROWS = 32, 512


def model_config(heads: bool) -> ModelConfig:
    """Three layers with rotary embedding and chunks, and one without."""
    return ModelConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        head_dim=16, intermediate_size_mlp=128, attention_chunk_size=CHUNK, compute_dtype="float32", remat="none",
        attn_temperature_tuning=False, initializer_range=0.1, rope_theta=100.0,
        reasoning_heads=ReasoningHeads(schema_tokens=3 * TOOLS) if heads else None,
    )  # fmt: skip


def rows(rng: np.random.Generator, count: int, kinds: Sequence[int], fewest: int = 2) -> dict[str, np.ndarray]:
    """A batch of `count` rows, [count, LENGTH] each: `fewest` to TOOLS tools, requests of `kinds`, drawn with equal
    shares: a number of hops, or GIVES."""
    tokens = np.zeros((count, LENGTH + 1), np.int32)
    tokens[:, :CHUNK] = rng.integers(FIRST_WORD, FIRST_WORD + WORDS, (count, CHUNK))
    answer, ends, marked = np.zeros((count, LENGTH + 1), bool), np.zeros((count, 1), int), np.zeros((count, 1), int)
    for i in range(count):
        tools = int(rng.integers(fewest, TOOLS + 1))
        names, takes = FIRST_NAME + rng.permutation(NAMES)[:tools], FIRST_TYPE + rng.permutation(TYPES)[:tools]
        declared = np.stack([takes, names, np.roll(takes, -1)], axis=1)[rng.permutation(tools)]
        tokens[i, : 3 * tools], marked[i] = declared.reshape(-1), 3 * tools
        at = QUESTION
        for _ in range(REQUESTS):
            kind, start = int(rng.choice(kinds)), int(rng.integers(0, tools))
            on_the_way = [(start + hop) % tools for hop in range(kind)]
            said = [takes[on_the_way[1]]] if kind == GIVES else [x[tool] for tool in on_the_way for x in (names, takes)]
            end = at + 2 + len(said)
            tokens[i, at:end] = [kind, takes[start], *said]  # and 0, the end
            answer[i, at + 2 : end + 1] = True
            at = end + 1
        ends[i] = at
    place = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (count, LENGTH))
    return {
        "tokens": tokens[:, :-1],
        "labels": tokens[:, 1:],
        "positions": place,
        "segment_ids": (place < ends).astype(np.int32),
        "loss_weights": answer[:, 1:].astype(np.float32),
        "marks": np.where(place < marked, Mark.SCHEMA, Mark.NONE).astype(np.uint8),
    }


def asked(rng: np.random.Generator, hops: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """TEST_ROWS rows whose first request has so many hops, and its answers."""
    batch = rows(rng, TEST_ROWS, [hops], TOOLS)
    answers = batch["tokens"][:, QUESTION + 2 : QUESTION + 3 + 2 * hops].copy()
    batch["tokens"] = np.where(np.arange(LENGTH) < QUESTION + 2, batch["tokens"], 0)
    return batch, answers


def written(model: Maverick, tokens: np.ndarray, marks: np.ndarray, hops: int) -> np.ndarray:
    """The answers, written greedily: int32[rows, 2 * hops + 1]."""
    tokens = tokens.copy()
    for place in range(QUESTION + 2, QUESTION + 3 + 2 * hops):
        logits = model.logits(jnp.asarray(tokens), marks=jnp.asarray(marks))
        tokens[:, place] = np.asarray(logits)[:, place - 1].argmax(axis=-1)
    return tokens[:, QUESTION + 2 : QUESTION + 3 + 2 * hops]


def judged(model: Maverick, hops: int) -> dict[str, float]:
    """Shares of TEST_ROWS answers that are right, and of their calls that are hallucinated."""
    batch, answers = asked(np.random.default_rng(10_000 + hops), hops)
    found = written(model, batch["tokens"], batch["marks"], hops)
    right = (found == answers).all(axis=1)
    tools = batch["tokens"][:, : 3 * TOOLS].reshape(TEST_ROWS, 1, TOOLS, 3)
    calls = found[:, : 2 * hops].reshape(TEST_ROWS, hops, 1, 2)
    declared = (tools[..., [1, 0]] == calls).all(axis=3).any(axis=2)
    low, high = wilson(float(right.mean()), TEST_ROWS)
    return {"right": float(right.mean()), "low": low, "high": high, "hallucinated": float(1 - declared.mean())}


@functools.cache
def compiled(heads: bool, rate: float, steps: int):
    """(init, step) of a variant."""
    config, objective = model_config(heads), Pretrain()
    falling = {"schedule": "wsd", "decay_fraction": 0.3, "min_ratio": 0.05}
    optimizer = AdamW(learning_rate=rate, warmup_steps=50, weight_decay=0.0, **falling)
    built = optimizer.build(steps, config, TrainableConfig().selection())
    parts = {"config": config, "rules": ShardingRules(), "optimizer": built, "objective": objective}
    step = functools.partial(train_step, references={}, objective=objective, optimizer=built)
    return jax.jit(functools.partial(init_state, **parts)), jax.jit(step, donate_argnums=0)


def learned(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one model and judges it along the way."""
    record = args.work / f"{variant}-{seed}.json"
    if record.is_file():
        return json.loads(record.read_text())
    heads, times = variant.startswith("heads"), VARIANTS[variant]
    config = model_config(heads)
    one, steps = times * args.one, times * (args.one + args.two)
    rng, curve, begun = np.random.default_rng(seed), [], time.process_time()
    with jax.set_mesh(single_device_mesh()):
        init, step = compiled(heads, args.rate, steps)
        state = init(seed)
        for i in range(steps):
            batch = rows(rng, ROWS, SECOND if i >= one else FIRST)
            state, metrics = step(state, {name: jnp.asarray(x)[None] for name, x in batch.items()})
            if (i + 1) % args.every == 0 or i + 1 in (one, steps):
                found = {f"hops{n}": judged(state.model, n) for n in (1, 2)}
                seconds = time.process_time() - begun
                curve.append({"updates": i + 1, "loss": float(metrics["loss"]), "cpu_seconds": seconds, **found})
                print(variant, seed, json.dumps(curve[-1]), flush=True)
    result = {"variant": variant, "seed": seed, "parameters": config.num_parameters(), "curve": curve}
    record.write_text(json.dumps(result))
    return result


def plot(runs: Sequence[dict[str, Any]], path: str) -> None:
    """Right answers and hallucinated calls with two hops by updates, a line per run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True, sharey=True)
    looks = {
        "heads": ("#1f3b57", "-"),
        "plain": ("#c8702a", "-"),
        "heads_twice": ("#1f3b57", ":"),
        "plain_twice": ("#c8702a", ":"),
    }
    for panel, key in zip(panels, ("right", "hallucinated"), strict=True):
        named = set()
        for run in runs:
            color, line = looks[run["variant"]]
            label = run["variant"].replace("_", ", ") if run["variant"] not in named else None
            named.add(run["variant"])
            points = [(point["updates"], point["hops2"][key]) for point in run["curve"]]
            panel.plot(*zip(*points, strict=True), line, color=color, marker="o", markersize=3, label=label)
        panel.set(title=f"two hops: {key}", xlabel="updates", ylim=(-0.02, 1.02))
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for the results")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--one", type=int, default=400, help="updates without second hops")
    parser.add_argument("--two", type=int, default=1600, help="updates with them in half of the requests")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--every", type=int, default=400, help="updates between evaluations")
    parser.add_argument("--plot", help="a PNG file to write")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    results = [learned(variant, seed, args) for seed in args.seeds for variant in args.variants]
    if args.plot:
        plot(results, args.plot)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
