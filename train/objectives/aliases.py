"""Usual names of training methods, answered with the objective that does it or with what is not there."""

import logging

from maverick_jax.settings.strict_yaml import Document, Problem
from train.objectives import OBJECTIVES

log = logging.getLogger(__name__)

ALIASES = {"sft": "trajectory", "reward_model": "reward"}
"""Another name of an objective kind -> the kind."""
PAIR_LOSSES = {"dpo": "sigmoid", "ipo": "ipo", "simpo": "simpo", "orpo": "orpo"}
"""Name of a method -> the kind of pair loss with which the preference objective is that method."""
_NOT_THERE = "training on rewards and with KTO is not there yet (docs/roadmap.md)"
_NOT_YET = {
    **dict.fromkeys(("kto", "cpo"), _NOT_THERE),
    **dict.fromkeys(("rlhf", "rlvr", "ppo", "grpo", "reinforce", "rloo"), _NOT_THERE),
}
"""What is asked for by name and is not there -> why."""


def replace_alias(document: Document) -> None:
    """Writes the kind of `objective` in place of another name of it, and a kind given as text as a mapping. Adds a
    problem for a method that is not there yet."""
    section = document.data.get("objective")
    if isinstance(section, str):
        document.places["objective.kind"] = document.place("objective")
        section = document.data["objective"] = {"kind": section}
    if not isinstance(section, dict) or not isinstance(kind := section.get("kind"), str):
        return
    if kind in OBJECTIVES.members:  # a plugin may have added it
        return
    name = kind.lower()
    if name in ALIASES:
        section["kind"] = ALIASES[name]
        log.info("objective: %s is the %s objective", name, ALIASES[name])
    elif name in PAIR_LOSSES:
        section["kind"] = "preference"
        loss = section.get("pair_loss") or {}
        section["pair_loss"] = {**loss, "kind": PAIR_LOSSES[name]} if isinstance(loss, dict) else loss
        log.info("objective: %s is the preference objective with pair_loss.kind: %s", name, PAIR_LOSSES[name])
    elif name in _NOT_YET:
        why = f"{kind}: {_NOT_YET[name]}; supervised fine-tuning on conversations is `sft`"
        document.problems.append(Problem(document.place("objective.kind"), "objective.kind", why))
        del document.data["objective"]  # so that the checks that follow say nothing else about it
