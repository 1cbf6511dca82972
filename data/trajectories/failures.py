"""Which results are errors: what the record says itself, else a rule for its text (docs/reference/trajectories.md)."""

import json
import re
from collections.abc import Callable

from data.trajectories.fields import Fields

TextRule = Callable[[str], bool]
FLAGS = ("is_error", "isError", "error")
STATUS = {"error": True, "failed": True, "failure": True, "timeout": True, "success": False, "ok": False,
          "completed": False}  # fmt: skip
EXIT_CODES = ("exit_code", "exitCode", "returncode", "return_code")
_BEGINS = re.compile(r"\s*(?:error\b\s*:|exception\s*:|traceback \(most recent call last\))", re.I)
_SHELL = re.compile(r"^(?:\S*sh: .*(?:not found|No such file)|Traceback \(most recent call last\):)", re.M)
_SWE_AGENT = (
    "Your proposed edit has introduced new syntax error",
    "Your command cannot contain",
    "Your output was not formatted correctly",
    "Your last output did not use any tool calls",
    "COMMAND TIMED OUT",
)
MAX_PARSED = 1 << 20
"""Characters of a result that is looked at as JSON."""


def is_error(fields: Fields, text: str, rule: TextRule) -> bool:
    """Whether the result in `fields` (its object in the record) is an error: a flag of it, else `rule` on its text.

    Flags: a boolean `is_error`, `isError` or `error`; `status`; an exit code that is not 0. All but the first three
    stay in `extra`.
    """
    for name in FLAGS:
        if type(fields.value.get(name)) is bool:
            return fields.take(name, bool)
    status = fields.value.get("status")
    if isinstance(status, str) and status.lower() in STATUS:
        fields.keep("status")
        return STATUS[status.lower()]
    for name in EXIT_CODES:
        if type(code := fields.value.get(name)) is int:
            fields.keep(name)
            return code != 0
    return rule(text)


def said(text: str) -> bool:
    """The text begins as an error does, or is a JSON object that says it is one."""
    return bool(_BEGINS.match(text)) or _object_says(text)


def tau_bench(text: str) -> bool:
    """What tau-bench answers to a call that failed or to a tool that it has not."""
    return text.startswith(("Error:", "Unknown action "))


def swe_agent(text: str) -> bool:
    """What its tools answer to a command that they refuse, and what shells and Python say of one that failed."""
    return said(text) or text.lstrip().startswith(_SWE_AGENT) or bool(_SHELL.search(text))


def _object_says(text: str) -> bool:
    if text.lstrip()[:1] != "{" or len(text) > MAX_PARSED:
        return False
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if found.get("error") or found.get("is_error") is True or found.get("isError") is True:
        return True
    status = found.get("status")
    return isinstance(status, str) and STATUS.get(status.lower(), False)
