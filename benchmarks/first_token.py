#!/usr/bin/env python
"""Time to the first token with latent thoughts, measured in the engine, against the closed form.

    python benchmarks/first_token.py [--prompt 500] [--latents 1 2 4 8] [--repeats 15] [--plot FILE.png]

Every latent is a pass over one token, and so is the token that ends the thought: with n latents the first token comes
(n + 1) steps later. So the ratio to a prompt without latents is 1 + (n + 1) step / first, where the seconds `first` of
a prompt without latents and `step` of a decoding step are those of the plain model, to which no latent is shown. All
take turns; figures are medians of the seconds of processors, which other programs on the machine change less, and
those of the clock. The last line is one JSON object.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.engine_worker import timed
from maverick_jax.accounting.devices import DEVICES
from maverick_jax.accounting.serving import Rates, first_token_seconds
from maverick_jax.config import ModelConfig
from maverick_jax.inference.engine import EngineSettings, GenerationRequest, SlotEngine
from maverick_jax.inference.sampling import Sampling
from maverick_jax.model.transformer import Maverick

STEPS = 32
"""Decoding steps whose mean is a step."""


def engines(context: int) -> tuple[SlotEngine, SlotEngine, int]:
    """Of `tiny` without and with latents, and the token of a latent."""
    config = ModelConfig.from_name("tiny", compute_dtype="float32")
    token = config.vocab_size - 1
    thinking = ModelConfig.model_validate(config.model_dump() | {"latent": {"token_id": token}})
    settings = EngineSettings(slots=1, context=context, steps=1, keep_bytes=0, lazy=True)
    return SlotEngine(Maverick.init(config), None, settings), SlotEngine(Maverick.init(thinking), None, settings), token


def prompt_of(length: int, latents: int, token: int, number: int) -> list[int]:
    """A text of `length` tokens; with latents, those and two tokens more, around them."""
    text = np.random.default_rng(number).integers(0, token, length + 2).tolist()
    return [*text[:-1], *[token] * latents, text[-1]] if latents else text[:length]


def measure(length: int, latents: Sequence[int], repeats: int) -> dict[str, Any]:
    plain, thinking, token = engines(length + max(latents) + STEPS + 8)
    first = lambda engine, prompt, tokens: engine.submit(GenerationRequest(prompt, tokens, Sampling(0.0)))[0].result()
    of_plain = lambda number, tokens: first(plain, prompt_of(length, 0, token, number), tokens)
    jobs: dict[str, Callable[[int], Any]] = {
        "first": lambda number: of_plain(number, 1),
        "more": lambda number: of_plain(number, 1 + STEPS),
    }
    for n in latents:
        jobs[str(n)] = lambda number, n=n: first(thinking, prompt_of(length, n, token, number), 1)
    with plain, thinking:
        for job in jobs.values():
            job(0)
        turn = lambda number: {name: timed(functools.partial(job, number)) for name, job in jobs.items()}
        turns = [turn(number) for number in range(1, 1 + repeats)]
    return {"prompt": length, "repeats": repeats} | {
        clock: compared({name: [clock_of(turn[name]) for turn in turns] for name in jobs}, latents)
        for clock, clock_of in (("cpu", lambda s: s.cpu_seconds), ("clock", lambda s: s.seconds))
    }


def compared(seconds: dict[str, list[float]], latents: Sequence[int]) -> dict[str, Any]:
    """Of one clock: seconds to the first token and of a step, and by number of latents both ratios."""
    median = {name: statistics.median(found) for name, found in seconds.items()}
    step = statistics.median(b - a for a, b in zip(seconds["first"], seconds["more"], strict=True)) / STEPS
    found: dict[str, Any] = {"first": median["first"], "step": step, "latents": {}}
    for n in latents:
        expected = 1 + (n + 1) * step / median["first"]
        ratio = statistics.median(b / a for a, b in zip(seconds["first"], seconds[str(n)], strict=True))
        found["latents"][n] = {"measured": ratio, "closed_form": expected, "off": ratio / expected - 1}
    return found


def plot(found: dict[str, Any], path: str) -> None:
    """What latents add to the time to the first token: measured and in closed form, and of Maverick on 8 H200."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    of_tiny = found["cpu"]["latents"]
    left.plot(
        [*of_tiny], [100 * (x["closed_form"] - 1) for x in of_tiny.values()], color="#7a8fa6", label="closed form"
    )
    left.plot([*of_tiny], [100 * (x["measured"] - 1) for x in of_tiny.values()], "o", color="#1f3b57", label="measured")
    left.set(title=f"tiny on one core, prompt of {found['prompt']} tokens")
    left.legend(frameon=False)
    config = ModelConfig.from_name("maverick_17b_128e", param_dtype="bfloat16", compute_dtype="bfloat16")
    rates, numbers = Rates(8 * DEVICES["h200"].matrix_rate, 8 * DEVICES["h200"].memory_rate), range(1, 25)
    right.axhspan(15, 20, color="#f2e2b8", label="15 to 20%")
    for prompt in (2000, 4000, 8000):
        plain = first_token_seconds(config, prompt, 0, rates)
        added = [100 * (first_token_seconds(config, prompt, n, rates) / plain - 1) for n in numbers]
        right.plot(numbers, added, label=f"{prompt:,} tokens")
    right.set(title="Maverick on 8 H200, closed form", ylim=(0, 40))
    right.legend(frameon=False)
    for panel in (left, right):
        panel.set(xlabel="latents", ylabel="added to the first token, %")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompt", type=int, default=500, help="tokens of the prompt")
    parser.add_argument("--latents", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--plot", help="a PNG file to write")
    args = parser.parse_args(argv)
    found = measure(args.prompt, args.latents, args.repeats)
    for n, each in found["cpu"]["latents"].items():
        print({"latents": n} | {k: round(v, 3) for k, v in each.items()}, file=sys.stderr)
    if args.plot:
        plot(found, args.plot)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
