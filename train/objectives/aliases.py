"""Usual names of training methods, answered with the objective that does it or with what is not there."""

import logging

from maverick_jax.settings.strict_yaml import Document, Problem
from train.objectives import OBJECTIVES

log = logging.getLogger(__name__)

ALIASES = {"sft": "trajectory", "reward_model": "reward", "rlhf": "policy", "rlvr": "policy"}
"""Another name of an objective kind -> the kind."""
METHODS = {
    **{name: ("preference", "pair_loss", loss) for name, loss in
       {"dpo": "sigmoid", "ipo": "ipo", "simpo": "simpo", "orpo": "orpo"}.items()},
    **{name: ("policy", "method", name) for name in ("grpo", "dr_grpo", "dapo", "gspo", "rloo", "cispo", "ppo")},
}  # fmt: skip
"""Name of a method -> the kind of objective, and the key and the kind of a part with which it is that method."""
_NOT_YET = dict.fromkeys(("kto", "cpo"), "is not there yet (docs/roadmap.md)")
"""What is asked for by name and is not there -> what is said."""


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
    elif name in METHODS:
        section["kind"], key, part = METHODS[name]
        given = section.get(key) or {}
        section[key] = {**given, "kind": part} if isinstance(given, dict) else given
        log.info("objective: %s is the %s objective with %s.kind: %s", name, section["kind"], key, part)
    elif name in _NOT_YET:
        why = f"{kind} {_NOT_YET[name]}; pairs are learned from by `dpo`, conversations by `sft`"
        document.problems.append(Problem(document.place("objective.kind"), "objective.kind", why))
        del document.data["objective"]  # so that the checks that follow say nothing else about it
