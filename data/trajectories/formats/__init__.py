"""The formats that runs are read from, by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

from data.trajectories.fields import Fields
from data.trajectories.formats import adp, atif, openai, ours, sharegpt, swe_agent, tau_bench
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean


@dataclasses.dataclass(frozen=True)
class Format:
    name: str
    needs: str
    """What a record of it has, in words."""
    matches: Callable[[dict[str, Any]], bool]
    read: Callable[[Fields], Trajectory]
    """Raises InputError beginning with the field."""


_MODULES = {"ours": ours, "openai": openai, "tau_bench": tau_bench, "swe_agent": swe_agent, "sharegpt": sharegpt,
            "atif": atif, "adp": adp}  # fmt: skip
FORMATS = {name: Format(name, m.NEEDS, m.matches, m.read) for name, m in _MODULES.items()}


def find_format(name: str) -> Format:
    """The format called `name`. Raises InputError with the nearest name."""
    if name not in FORMATS:
        raise InputError(f"format {name!r:.80}; expected one of {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def detect(record: Any) -> Format:
    """The format that `record` is of, by its fields. Raises InputError that lists what was tried."""
    found = [form for form in FORMATS.values() if isinstance(record, dict) and form.matches(record)]
    if ours_too := [form for form in found if form.name == "ours"]:
        return ours_too[0]  # its messages are OpenAI's too, and it says what it is
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"could be {' or '.join(form.name for form in found)}; say which with --format")
    tried = "; ".join(f"{form.name}: {form.needs}" for form in FORMATS.values())
    has = ", ".join(f"{name!r:.40}" for name in list(record)[:12]) if isinstance(record, dict) else None
    what = f"has {has or 'no fields'}" if isinstance(record, dict) else f"is {type(record).__name__}, not an object"
    raise InputError(f"of no known format: it {what}. Tried {tried}")
