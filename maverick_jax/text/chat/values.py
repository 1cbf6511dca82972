"""JSON values of tool calls and schemas: strict parsing, with limits on size and depth."""

import json
import math
import re
from typing import Any, NoReturn

from maverick_jax.errors import InputError
from maverick_jax.files import no_constant, once
from maverick_jax.text.tokenizers.base import require_unicode

MAX_DEPTH = 64
"""Deepest nesting of lists and objects in one value."""
MAX_CHARACTERS = 1 << 20
"""Most characters of one value in JSON, such as the arguments of a call or the schema of a tool."""
MAX_ITEMS = 50_000
"""Most scalars, lists and objects in one value."""
MAX_INTEGER_BITS = 14_000
"""Largest integer; Python does not convert integers of more than 4300 digits to text."""


def checked(
    value: Any, where: str = "value", *, max_characters: int = MAX_CHARACTERS, max_items: int = MAX_ITEMS
) -> Any:
    """A copy of a JSON value: str, int, float, bool, None, list and dict with str keys.

    Raises InputError, beginning with `where`, for any other type, for NaN and infinities, for text that is not valid
    Unicode, and for a value beyond the limits above.
    """
    checker = _Checker(where, max_characters, max_items)
    copy = checker.copy(value, 0)
    if len(write(copy)) > max_characters:
        checker.refuse(f"longer than {max_characters:,} characters")
    return copy


class _Checker:
    def __init__(self, where: str, max_characters: int, max_items: int):
        self.where, self.max_characters, self.max_items = where, max_characters, max_items
        self.characters, self.items = max_characters, max_items

    def copy(self, value: Any, depth: int) -> Any:
        self.items -= 1
        if self.items < 0:
            self.refuse(f"more than {self.max_items:,} items")
        if depth > MAX_DEPTH:
            self.refuse(f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, dict):
            return {self.text(key, "key"): self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(item, depth + 1) for item in value]
        if isinstance(value, str):
            return self.text(value, "text")
        return self.scalar(value)

    def scalar(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            if value.bit_length() > MAX_INTEGER_BITS:
                self.refuse(f"an integer of {value.bit_length()} bits; expected at most {MAX_INTEGER_BITS}")
            return int(value)
        if isinstance(value, float):
            if not math.isfinite(value):
                self.refuse(f"{value} is not a JSON number")
            return float(value)
        kinds = "text, number, true, false, null, list, object"
        raise InputError(f"{self.where}: expected JSON ({kinds}), got {type(value).__name__}")

    def text(self, value: Any, what: str) -> str:
        if not isinstance(value, str):
            self.refuse(f"expected a {what} of type str, got {type(value).__name__}")
        self.characters -= len(value)
        if self.characters < 0:
            self.refuse(f"longer than {self.max_characters:,} characters")
        try:
            require_unicode(value)
        except InputError as error:
            self.refuse(str(error))
        return str(value)

    def refuse(self, reason: str) -> NoReturn:
        raise InputError(f"{self.where}: {reason}")


def read(text: str, where: str = "value") -> Any:
    """Parse one JSON value and check it as `checked` does. Raises InputError, also for NaN, duplicate keys and text
    after the value."""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{where}: longer than {MAX_CHARACTERS:,} characters")
    value, end = read_prefix(text, 0, where)
    if text[end:].strip():
        raise InputError(f"{where}: not JSON: more text after character {end}")
    return value


def read_prefix(text: str, begin: int, where: str = "value") -> tuple[Any, int]:
    """The JSON value at `begin` (after optional white space), and the index after its end."""
    space = _SPACE.match(text, begin)
    try:
        value, end = _DECODER.raw_decode(text, space.end() if space else begin)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise InputError(f"{where}: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    return checked(value, where), end


def write(value: Any) -> str:
    """JSON on one line; non-ASCII characters are not escaped."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


_SPACE = re.compile(r"\s*+")
_DECODER = json.JSONDecoder(object_pairs_hook=once, parse_constant=no_constant)
