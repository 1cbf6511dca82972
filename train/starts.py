"""When, where and how a run was started: the record that `environment.json` keeps of every start."""

import datetime
import json
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import train
from maverick_jax.settings.redaction import redact

MAX_STARTS = 100
"""Most starts that are kept: the first, and the newest others."""


def kept_starts(earlier: list[Any], new: dict[str, Any]) -> list[Any]:
    """The starts to record: at most `MAX_STARTS`, the first among them."""
    return [*earlier[:1], *earlier[1:][2 - MAX_STARTS :], new]


def start_record(step: int, changed: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """When, where and how this process was started, for `environment.json`. changed: old and new value of each key of
    the config that is another than at the start before."""
    name = pathlib.Path(sys.argv[0]).name
    return {
        "step": step,
        "changed": {key: list(values) for key, values in changed.items()},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "command": shlex.join(["maverick" if name == "cli.py" else name, *map(redact, sys.argv[1:])]),
        "version": version("maverick-jax"),
        "commit": commit_of(pathlib.Path(train.__file__).parent.parent),
    }


def commit_of(checkout: pathlib.Path) -> str | None:
    """The git commit of a checkout, followed by `+changes` if tracked files differ from it; None if `checkout` is not
    the root of a git working tree, or git is missing or refuses it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")) != checkout.resolve():
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def recorded_starts(path: pathlib.Path) -> list[Any]:
    """The starts that an earlier process recorded; none if the file cannot be read."""
    try:
        found = json.loads(path.read_bytes())["starts"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return found if isinstance(found, list) else []
