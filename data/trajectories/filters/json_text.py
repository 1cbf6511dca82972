"""JSON inside a text: its strings and numbers are changed where they stand, and nothing else is."""

import json
import re
from collections.abc import Callable

_TOKEN = re.compile(r'("[^"\\]*+(?:\\.[^"\\]*+)*+")(\s*+:)?|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?', re.DOTALL)


def is_json(text: str) -> bool:
    """Whether all of it is one object, list or string."""
    if text.lstrip()[:1] not in ("{", "[", '"'):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):  # also a number too long to be one
        return False
    return True


def change_json(
    text: str, string: Callable[[str], str], number: Callable[[str], str], key: Callable[[str], None]
) -> str:
    """`text`, which `is_json`, with every string that is no key, and every number, changed; keys are shown to `key`.
    What does not change is written as it was."""

    def change(found: re.Match[str]) -> str:
        if found[1] is None:
            return number(found[0])
        old = json.loads(found[1])
        if found[2] is not None:
            key(old)
            return found[0]
        new = string(old)
        return found[1] if new == old else _write(new, found[1].isascii())

    return _TOKEN.sub(change, text)


def _write(text: str, ascii_only: bool) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which only an escape can write
        ascii_only = True
    return json.dumps(text, ensure_ascii=ascii_only)
