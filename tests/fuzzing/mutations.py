"""Hypothesis strategies that damage valid data: bytes, JSON and text. They do not depend on the targets."""

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from tests.helpers.chats import FRAGMENTS

# ---- bytes -----------------------------------------------------------------------------------------------------------

_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


@st.composite
def damaged(draw, good: bytes, most: int = 5, within: int | None = None) -> bytes:
    """`good` with a few edits, all in its first `within` bytes (None: anywhere)."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, most))):
        end = min(len(data), within or len(data))
        at = draw(st.integers(0, end))
        count = draw(st.integers(0, min(64, end - at)))
        match draw(st.sampled_from(["flip", "number", "replace", "delete", "repeat", "move", "cut", "extend"])):
            case "flip" if at < end:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "number":
                width = draw(st.sampled_from([1, 2, 4, 8]))
                value = draw(st.sampled_from(_NUMBERS)) % 256**width
                data[at : at + width] = value.to_bytes(width, draw(st.sampled_from(["little", "big"])))
            case "replace":
                data[at : at + count] = draw(st.binary(max_size=16))
            case "delete":
                del data[at : at + count]
            case "repeat":
                data[at:at] = data[at : at + count] * draw(st.integers(1, 40))
            case "move":
                data[at : at + count] = data[(there := draw(st.integers(0, end))) : there + count]
            case "cut":
                del data[at:]
            case "extend":
                data += bytes(draw(st.integers(1, 5000)))
    return bytes(data)


@st.composite
def bulk(draw, fragments: Sequence[str], most_bytes: int) -> str:
    """A short text repeated many times, between a prefix and a suffix."""
    pieces = st.lists(st.sampled_from(fragments), min_size=1, max_size=3).map("".join)
    middle = draw(pieces)
    times = draw(st.sampled_from([100, 1000, 10_000, 10**9]))
    return draw(pieces) + middle * min(times, most_bytes // (4 * len(middle))) + draw(pieces)


# ---- JSON ------------------------------------------------------------------------------------------------------------


class Raw(str):
    """The text of a value, which may be invalid JSON."""


_LITERALS = ["NaN", "-Infinity", "1e999", "-0", "01", "1e-400", "9" * 5000, '"\\ud800"', '"\\u0000"', "[1,]", "/**/1"]
_DEEP = st.builds(
    lambda pair, depth: Raw(pair[0] * depth + "1" + pair[1] * depth),
    st.sampled_from([("[", "]"), ('{"a":', "}")]),
    st.one_of(st.integers(1, 80), st.integers(930, 1000), st.sampled_from([3000, 100_000])),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 3, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30, 10**400, -(10**400)]),
    st.sampled_from([-0.0, 0.5, 1.5, 1e-320, 1e308, -1e308, 1e15]),
    st.sampled_from(["", "a", "nan", "1e5", "8", "../x", "\0", "\x1b[2J", "\ud800", "bfloat16", "é" * 300, "true"]),
    st.integers(-50, 5000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
    st.sampled_from(FRAGMENTS),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
WILD = st.one_of(SCALARS, VALUES, st.sampled_from(_LITERALS).map(Raw), _DEEP)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of each value in `tree`."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield tree, key
        yield from places(value)


_EDITS = ["wild"] * 4 + ["near"] * 3 + ["delete", "rename", "swap", "wrap", "longer", "twice"]


@st.composite
def changed(draw, tree: Any, most: int = 3, wild: st.SearchStrategy = WILD) -> Any:
    """A copy of `tree` (JSON values) with a few changed values, keys and positions."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        found = list(places(tree))
        if not found:
            return draw(wild)
        container, key = draw(st.sampled_from(found))
        other, there = draw(st.sampled_from(found))
        value = container[key]
        match draw(
            st.sampled_from(["wild"] * 4 + ["near"] * 3 + ["delete", "rename", "swap", "wrap", "longer", "twice"])
        ):
            case "near":
                container[key] = draw(_near(value))
            case "delete":
                del container[key]
            case "rename" if isinstance(container, dict):
                container[draw(st.one_of(st.text(max_size=5), st.just(str(key)[:-1])))] = container.pop(key)
            case "swap":
                container[key] = copy.deepcopy(other[there])
            case "wrap":
                container[key] = draw(st.sampled_from([[value], {"a": value}, [value, value]]))
            case "longer" if isinstance(value, list):
                container[key] = value * draw(st.sampled_from([0, 2, 1000]))
            case "twice" if isinstance(value, dict) and value:
                container[key] = Raw(f"{{{dumps(value)[1:-1]}, {dumps(value)[1:-1]}}}")
            case _:
                container[key] = draw(wild)
    return tree


def _near(value: Any) -> st.SearchStrategy:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return st.sampled_from([value, str(value), [value], None])
    near = [value + 1, value - 1, -value, 2 * value, value + 0.5 if abs(value) < 2**53 else value, 2**20 + value]
    return st.sampled_from([*near, dumps(value)])


def dumps(value: Any) -> str:
    """The JSON of a value, in which `Raw` texts are written as they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {dumps(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dumps, value)) + "]"
    with_digits = isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**4000
    return "9" * 5000 if with_digits else json.dumps(value)


@st.composite
def json_files(draw, tree: Any, most: int = 3) -> bytes:
    """The JSON file of `tree` with changed values and sometimes with changed bytes."""
    text = dumps(draw(changed(tree, most))).encode("utf-8", "surrogatepass")
    return draw(damaged(text, 2)) if draw(st.integers(0, 9)) == 0 else text
