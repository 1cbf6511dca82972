#!/usr/bin/env python
"""Time to the first token with latent thoughts, measured in the engine, against the closed form.

    python benchmarks/first_token.py [--prompt 500] [--latents 1 2 4 8] [--repeats 15]

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
    settings = EngineSettings(slots=1, context=context, steps=1, keep_bytes=0)
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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompt", type=int, default=500, help="tokens of the prompt")
    parser.add_argument("--latents", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args(argv)
    found = measure(args.prompt, args.latents, args.repeats)
    for n, each in found["cpu"]["latents"].items():
        print({"latents": n} | {k: round(v, 3) for k, v in each.items()}, file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
