#!/usr/bin/env python
"""Tokens per second of rollouts against those of the engine alone, at the same load.

    python benchmarks/rollout_throughput.py CONFIG [--rounds 5] [key=value ...]

CONFIG is that of a policy run, whose start exists. A set of its episodes is played as in training: environments in
threads, calls parsed, results observed. The requests that the engine got are kept, and the engine alone gets them
again: the same prompts, seeds and lengths, each as soon as the one before it in its episode has ended, with nothing in
between. Both write the same tokens, which is checked, and take turns after a round that compiles. Figures are medians.
The last line is one JSON object.
"""

import argparse
import concurrent.futures
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.engine_worker import Spent, timed
from benchmarks.overrides import with_overrides
from maverick_jax.inference.engine import Generation, GenerationRequest, SlotEngine
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import load_pretrained
from maverick_jax.text import load_tokenizer
from train.config_files import read_config
from train.objectives.policy.objective import Policy
from train.rollouts.playing import Playing


class Submitted(NamedTuple):
    """What an engine was asked for, and what came of it."""

    request: GenerationRequest
    generations: list[Generation]


class Recorder:
    """An engine that keeps what it is asked for."""

    def __init__(self, engine: SlotEngine):
        self.engine, self.submitted = engine, list[Submitted]()

    def submit(self, request: GenerationRequest, n: int = 1) -> list[Generation]:
        generations = self.engine.submit(request, n)
        self.submitted.append(Submitted(request, generations))
        return generations


def chains(submitted: Sequence[Submitted]) -> tuple[list[Submitted], list[list[GenerationRequest]]]:
    """The requests that begin episodes, and for each of their generations those that follow it: the ones whose prompt
    goes on from what was written. Between episodes that are alike so far it does not matter which of them goes on."""
    begun, texts, following = [], list[list[int]](), list[list[GenerationRequest]]()
    for request, generations in sorted(submitted, key=lambda found: len(found.request.prompt)):
        prompt = list(request.prompt)
        before = [i for i, text in enumerate(texts) if text == prompt[: len(text)]]
        written = [list(generation.result().tokens) for generation in generations]
        if before:
            last = max(before, key=lambda i: len(texts[i]))
            texts[last] = prompt + written[0]
            following[last].append(request)
            continue
        begun.append(Submitted(request, generations))
        texts += [prompt + tokens for tokens in written]
        following += [[] for _ in written]
    return begun, following


def replay(engine: SlotEngine, begun: Sequence[Submitted], following: Sequence[Sequence[GenerationRequest]]) -> int:
    """Gives the engine the requests again, episode by episode. Returns how many tokens it wrote."""
    with concurrent.futures.ThreadPoolExecutor(len(following)) as threads:
        first = [g for request, found in begun for g in engine.submit(request, len(found))]

        def through(i: int) -> int:
            written = len(first[i].result().tokens)
            return written + sum(len(engine.submit(request)[0].result().tokens) for request in following[i])

        return sum(threads.map(through, range(len(following))))


class Rounds:
    """Rollouts and the engine alone, in turns. `spent`: what each round took; `tokens`: written in each."""

    def __init__(self, engine: SlotEngine, model: Maverick, playing: Playing):
        self._engine, self._model, self._playing = engine, model, playing
        self.spent: dict[str, list[Spent]] = {"rollouts": [], "engine": []}
        self.tokens = 0

    def turn(self) -> None:
        recorder = Recorder(self._engine)
        self._engine.load(self._model)  # forgets all texts
        self.spent["rollouts"].append(timed(lambda: self._playing.play(recorder, 0)))
        begun, following = chains(recorder.submitted)
        self.tokens = sum(len(g.result().tokens) for _, found in recorder.submitted for g in found)
        self._engine.load(self._model)
        again: list[int] = []
        self.spent["engine"].append(timed(lambda: again.append(replay(self._engine, begun, following))))
        if again != [self.tokens]:
            raise SystemExit(f"the engine alone wrote {again[0]} tokens, in rollouts {self.tokens}")


def measure(config_name: str, overrides: Sequence[str], rounds: int) -> dict[str, Any]:
    config = read_config(config_name, overrides)
    if not isinstance(config.objective, Policy) or config.model.init_from is None:
        raise SystemExit(f"{config_name}: expected a run of reinforcement learning that starts from a checkpoint")
    tokenizer, settings = load_tokenizer(config.data.tokenizer), config.objective.rollouts
    model = load_pretrained(config.model.init_from)
    engine = SlotEngine(model, tokenizer, settings.engine)
    taken = Rounds(engine, model, Playing(settings, config.objective.environments, tokenizer, config.run.seed))
    for _ in range(rounds + 1):  # the first one compiles
        taken.turn()
    engine.close()
    figures = {}
    for name, spent in taken.spent.items():
        seconds, cpu = (statistics.median(found) for found in zip(*spent[1:], strict=True))
        figures[name] = {"tokens_per_second": taken.tokens / seconds, "tokens_per_cpu_second": taken.tokens / cpu}
    share = {key: figures["rollouts"][key] / figures["engine"][key] for key in figures["engine"]}
    about = {"config": config_name, "episodes": settings.episodes, "tokens": taken.tokens, "rounds": rounds}
    return about | figures | {"share": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a shipped config or a file")
    parser.add_argument("--rounds", type=int, default=5)
    args, overrides = with_overrides(parser)
    found = measure(args.config, overrides, args.rounds)
    for name, shown in {"rollouts": ",.0f", "engine": ",.0f", "share": ".2f"}.items():
        seconds, cpu = (found[name][f"tokens_per_{of}"] for of in ("second", "cpu_second"))
        print(f"{name}: {seconds:{shown}} tokens per second, {cpu:{shown}} per CPU second")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
