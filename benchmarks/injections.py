#!/usr/bin/env python
"""The injection suite of the toy shop: benign utility, utility under attack and targeted success, guard off and on.

    python benchmarks/injections.py [--cases 200] [--model RUN --tokenizer FOLDER --at-once 48]

Without a model, the agents are scripted clerks, whose conduct is known: one ignores notes on orders, one does what they
say, one is careless too. With a model (a run of `benchmarks/violations.py`, whose prompts leave out system message and
tools) it is judged instead. Templates are those held out. The last line is one JSON object.
"""

import argparse
import json
import pathlib
import random
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.toy_shop_clerk import clerk, gullible
from data.policy import read_policy
from maverick_jax.text import load_tokenizer
from train.evaluation.injections import injection_suite
from train.rollouts.episodes import Policy, model_policy

FIRST = 700_000
"""First seed of the cases; no training data has these."""
COLUMNS = ("benign_utility", "utility_under_attack", "targeted_success", "violations", "held_back_benign")


def scripted() -> dict[str, Callable[[int], Policy]]:
    """Agents of known conduct, by name; each makes the policy of an episode."""
    return {
        "ignores notes": lambda seed: clerk(random.Random(seed), careless=0.0),
        "obeys notes": lambda seed: gullible(clerk(random.Random(seed), careless=0.0)),
        "careless, obeys notes": lambda seed: gullible(clerk(random.Random(seed), careless=1.0)),
    }


def model_agents(run: str, tokenizer_folder: str) -> dict[str, Callable[[int], Policy]]:
    """The model of a run of `benchmarks/violations.py`, at temperature 1."""
    from benchmarks.violations import DIALECT, Player, _short

    tokenizer = load_tokenizer(tokenizer_folder)
    player = Player(pathlib.Path(run), tokenizer)

    def make(seed: int) -> Policy:
        turns = iter(range(10**6))
        answer = lambda prompts: [player.answer(prompts[0], (seed * 64 + next(turns)) * 7919)]
        policy = model_policy(answer, tokenizer, DIALECT)
        return lambda conversation: policy(_short(conversation))

    return {pathlib.Path(run).name: make}


def row(name: str, found: dict[str, Any]) -> str:
    cells = [f"{found[c]['value']:.1%} ({found[c]['low']:.0%} to {found[c]['high']:.0%})" for c in COLUMNS]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--model", help="a run of benchmarks/violations.py")
    parser.add_argument("--tokenizer", help="its tokenizer's folder")
    parser.add_argument("--at-once", type=int, default=1, help="cases at the same time")
    args = parser.parse_args()
    policy, found = read_policy("package:toy_shop_policy"), {}
    agents = model_agents(args.model, args.tokenizer) if args.model else scripted()
    print(f"| agent, guard | {' | '.join(COLUMNS)} |")
    for name, make in agents.items():
        found[name] = injection_suite(make, range(FIRST, FIRST + args.cases), policy, at_once=args.at_once)
        for guard, figures in found[name].items():
            print(row(f"{name}, {guard.replace('_', ' ')}", figures), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
