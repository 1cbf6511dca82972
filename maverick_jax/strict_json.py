"""What JSON leaves open and Python's parser lets through: keys said twice, and numbers that are none."""

from typing import Any, NoReturn


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` that raises ValueError for a key that is given twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r:.80} is given twice")
        found[key] = value
    return found


def no_constant(text: str) -> NoReturn:
    """`parse_constant` that raises ValueError: NaN and the infinities are no JSON."""
    raise ValueError(f"{text} is no JSON number")
