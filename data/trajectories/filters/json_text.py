"""Change the strings and numbers of JSON inside a text, in place, leaving everything else unchanged."""

import json
import re
from collections.abc import Callable

_TOKEN = re.compile(r'("[^"\\]*+(?:\\.[^"\\]*+)*+")(\s*+:)?|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?', re.DOTALL)


def is_json(text: str) -> bool:
    """Whether the whole text is one JSON object, list or string."""
    if text.lstrip()[:1] not in ("{", "[", '"'):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):  # ValueError also for a number with too many digits
        return False
    return True


def change_json(
    text: str, string: Callable[[str], str], number: Callable[[str], str], key: Callable[[str], None]
) -> str:
    """The JSON `text` with every number changed by `number` and every string, except keys, by `string`; `key` is called
    with each key. Unchanged values keep their written form."""

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
    except UnicodeEncodeError:  # a surrogate, which only an escape can represent
        ascii_only = True
    return json.dumps(text, ensure_ascii=ascii_only)
