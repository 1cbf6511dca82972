"""The trajectory formats that can be read, by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

from data.trajectories.fields import Fields
from data.trajectories.formats import (
    adp,
    alpaca,
    atif,
    openai,
    ours,
    prompt_completion,
    sharegpt,
    swe_agent,
    tau_bench,
)
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean


@dataclasses.dataclass(frozen=True)
class Format:
    name: str
    needs: str
    """Description of the fields that identify a record, for messages."""
    matches: Callable[[dict[str, Any]], bool]
    read: Callable[[Fields], Trajectory]
    """Reads a record; raises InputError beginning with the field."""


_MODULES = {"ours": ours, "openai": openai, "tau_bench": tau_bench, "swe_agent": swe_agent, "sharegpt": sharegpt,
            "atif": atif, "adp": adp, "alpaca": alpaca, "prompt_completion": prompt_completion}  # fmt: skip
FORMATS = {name: Format(name, m.NEEDS, m.matches, m.read) for name, m in _MODULES.items()}


def find_format(name: str) -> Format:
    """The format called `name`. Raises InputError with the most similar name if there is none."""
    if name not in FORMATS:
        raise InputError(f"format {name!r:.80}; expected one of {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def detect(record: Any) -> Format:
    """The format of `record`, by its fields. Raises InputError that lists the formats tried."""
    found = [form for form in FORMATS.values() if isinstance(record, dict) and form.matches(record)]
    if ours_too := [form for form in found if form.name == "ours"]:
        return ours_too[0]  # it also matches openai, but names its format
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(form.name for form in found)
        raise InputError(f"could be {names}; choose one with --format, or trajectories.format in a config")
    tried = "; ".join(f"{form.name}: {form.needs}" for form in FORMATS.values())
    has = ", ".join(f"{name!r:.40}" for name in list(record)[:12]) if isinstance(record, dict) else None
    finding = f"has {has or 'no fields'}" if isinstance(record, dict) else f"is {type(record).__name__}, not an object"
    raise InputError(f"unknown format: it {finding}. Tried {tried}")
