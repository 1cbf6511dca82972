"""Which tool results are errors: by a flag of the record, or else by a rule for the text.

The flags and rules are listed in docs/reference/trajectories.md.
"""

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
"""Longest result that is parsed as JSON, in characters."""


def is_error(fields: Fields, text: str, rule: TextRule) -> bool:
    """Whether the result in `fields` (its object in the record) is an error: by its flags, or else by `rule` on its
    text.

    Flags are a boolean `is_error`, `isError` or `error`, a known `status`, and an exit code. Status and exit code are
    kept in `extra`.
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


def generic(text: str) -> bool:
    """Whether the text begins like an error message, or is a JSON object with an error flag."""
    return bool(_BEGINS.match(text)) or _is_error_object(text)


def tau_bench(text: str) -> bool:
    """Whether the text is tau-bench's answer to a failed call or an unknown tool."""
    return text.startswith(("Error:", "Unknown action "))


def swe_agent(text: str) -> bool:
    """Whether the text is a refusal of SWE-agent's tools, or an error of a shell or of Python."""
    return generic(text) or text.lstrip().startswith(_SWE_AGENT) or bool(_SHELL.search(text))


def _is_error_object(text: str) -> bool:
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
