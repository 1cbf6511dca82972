"""`maverick data filter`: write the trajectories that pass a filter, in our format, and a report of the others."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from rich.console import Console

from data.trajectories.convert import nothing_read
from data.trajectories.fields import Unknown
from data.trajectories.filters import report
from data.trajectories.filters.apply import apply
from data.trajectories.filters.config import CurationConfig
from data.trajectories.filters.rules import TokenCount
from data.trajectories.formats import ours
from data.trajectories.reading import Malformed, Tally, read_tools, read_trajectories
from data.trajectories.writing import new_file, require_new
from maverick_jax.errors import InputError
from maverick_jax.settings import strict_yaml, validation
from maverick_jax.settings.strict_yaml import Document, Location, Problem, join
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import render
from maverick_jax.text.chat.dialects import DEFAULT

COMMAND_LINE = Location("command line")


def filter_trajectories(
    source: str,
    out: str,
    config: CurationConfig,
    *,
    report_file: str | None = None,
    format: str | None = None,
    unknown: Unknown = "keep",
    malformed: Malformed = "stop",
    tools: str | None = None,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """Write the trajectories of `source` that `config` keeps to the new file `out`, and the report to the new file
    `report_file`; each appears when complete. Returns the report.

    Raises InputError in the cases of `convert`, and if no trajectory is kept, with the number dropped by each rule;
    then nothing is written.
    """
    target = pathlib.Path(out).expanduser()
    require_new(target)
    declared = read_tools(tools) if tools is not None else ()
    tally = Tally()
    trajectories = read_trajectories(
        source, format=format, unknown=unknown, malformed=malformed, tools=declared, tally=tally
    )
    count = _counter(tokenizer) if tokenizer is not None else None
    if report_file is None:
        return _write(target, trajectories, config, count, tally, source)
    if pathlib.Path(report_file).expanduser().absolute() == target.absolute():
        raise InputError(f"{report_file}: also the file of the trajectories; choose another path for the report")
    with new_file(report_file) as file:
        found = _write(target, trajectories, config, count, tally, source)
        file.write(json.dumps(found, indent=2) + "\n")
    return found


def _counter(path: str) -> TokenCount:
    """Counts tokens with the tokenizer at `path`, in its dialect."""
    tokenizer = load_tokenizer(path)
    dialect = tokenizer.dialect or DEFAULT
    return lambda trajectory: render(trajectory.conversation, tokenizer, dialect).ids.size


def _write(target, trajectories, config: CurationConfig, count_tokens, tally: Tally, source: str) -> dict[str, Any]:
    kept, done = apply(trajectories, config, count_tokens=count_tokens)
    with new_file(target) as file:
        for trajectory in kept:
            file.write(ours.write(trajectory) + "\n")
        if not done.read:
            raise InputError(nothing_read(source, tally))
        if not done.kept:
            counts = ", ".join(f"{rule} {count:,}" for rule, count in done.dropped_by.items())
            raise InputError(f"{source}: none of the {done.read:,} trajectories is kept ({counts}); relax the filter")
    return {"out": str(target), **done.as_dict(), "malformed": tally.malformed, "problems": _problems(tally)}


def _problems(tally: Tally) -> list[dict[str, Any]]:
    return tally.as_dict()["problems"]


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Print the result of `filter_trajectories` as tables."""
    console = console or Console()
    report.show(found, console)
    if found["malformed"]:
        console.print(f"malformed records skipped: {found['malformed']:,}", highlight=False)
    console.print(f"written: {found['out']}", markup=False, highlight=False)


# ---- config --------------------------------------------------------------------------------------------------------


def read_config(path: str | None, overrides: Iterable[str] = ()) -> CurationConfig:
    """Read a YAML file with `filter` and `scrub` (the defaults if `path` is None) and apply overrides such as
    `filter.loops=4`. Raises InputError with a line per problem."""
    found = strict_yaml.read(pathlib.Path(path).expanduser()) if path is not None else Document({}, {}, [])
    found.places.setdefault("", COMMAND_LINE)
    if found.data is None:
        found.data = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")) or not isinstance(found.data, dict):
            found.problems.append(Problem(COMMAND_LINE, word, "expected key=value, such as filter.loops=4"))
            continue
        value = strict_yaml.parse_value(text, COMMAND_LINE, key)
        found.problems += value.problems
        found.places |= {join(key, inner).rstrip("."): place for inner, place in value.places.items()}
        *above, last = key.split(".")
        section = found.data
        for name in above:
            if not isinstance(section.get(name), dict):
                section[name] = {}
                found.places.setdefault(name, COMMAND_LINE)
            section = section[name]
        section[last] = value.data
    return validation.validate(CurationConfig, found)
