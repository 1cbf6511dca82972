"""Keys that moved: the error for an old key in a config names the new key, and saved data with old keys is read as if
it had the new ones.

A table maps old dotted keys to new ones. An entry also moves the keys below it: with `a.b -> c`, the key `a.b.x` is now
`c.x`.
"""

from collections.abc import Mapping
from typing import Any

from maverick_jax.settings.strict_yaml import Document, Problem

Moved = Mapping[str, str]
"""Old dotted key -> new dotted key."""


def new_name(key: str, moved: Moved) -> str | None:
    """The new name of `key`; None if neither it nor a key above it moved."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if (today := moved.get(".".join(parts[:length]))) is not None:
            return ".".join([today, *parts[length:]])
    return None


def moved_problems(document: Document, moved: Moved) -> list[Problem]:
    """One problem per moved key in `document`, with its place. Keys below a key that is reported in the same source are
    left out."""
    found: dict[tuple[str, str], Problem] = {}
    for key in sorted(document.places, key=lambda key: key.count(".")):
        place = document.places[key]
        if (today := new_name(key, moved)) is None or any((place.source, above) in found for above in _above(key)):
            continue
        found[place.source, key] = Problem(place, key, f"moved to {today}")
    return list(found.values())


def with_new_keys(data: Mapping[str, Any], moved: Moved) -> dict[str, Any]:
    """A copy of nested mappings in which every moved key has its new name. A mapping that this leaves empty is removed.

    An old key whose new name is taken stays where it is.
    """
    found = _copy(data)
    for old, today in moved.items():
        *path, last = old.split(".")
        *above, name = today.split(".")
        source = _inner(found, path)
        if source is None or last not in source:
            continue
        target = _inner(found, above, make=True)
        if target is None or name in target:
            continue
        target[name] = source.pop(last)
        if path and not source:
            del _inner(found, path[:-1])[path[-1]]  # pyright: ignore[reportOptionalSubscript]
    return found


def _above(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _copy(data: Any) -> Any:
    return {key: _copy(value) for key, value in data.items()} if isinstance(data, Mapping) else data


def _inner(data: dict[str, Any], path: list[str], *, make: bool = False) -> dict[str, Any] | None:
    """The mapping at `path`. If there is none, it is created if `make` is set; otherwise the result is None."""
    for part in path:
        inner = data.setdefault(part, {}) if make else data.get(part)
        if not isinstance(inner, dict):
            return None
        data = inner
    return data
