"""Read a JSON object field by field, and keep or refuse the fields that were not read."""

import collections
import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Literal

from data.trajectories.meaning import refuse_field
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean

Unknown = Literal["keep", "refuse"]
_INDEX = re.compile(r"\[\d+\]")
_NAMES = {str: "text", dict: "an object", list: "a list", bool: "true or false", int: "an integer", float: "a number"}
_MISSING: Any = object()
MAX_NAMES = 1_000
"""Most different names with their own count; further names are counted together."""


@dataclasses.dataclass
class FieldCounts:
    """Counts of fields that the normal form lacks, by path without indices, and the policy for unknown fields."""

    unknown: Unknown = "keep"
    kept: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "FieldCounts") -> None:
        for mine, theirs in ((self.kept, other.kept), (self.left_out, other.left_out)):
            for name, count in theirs.items():
                mine[name if name in mine or len(mine) < MAX_NAMES else "(others)"] += count


class Fields:
    """One object of a record. Every error begins with the path of the field."""

    def __init__(self, value: Any, where: str, seen: FieldCounts):
        if not isinstance(value, dict):
            raise InputError(f"{where or 'record'}: expected an object, got {kind_of(value)}")
        self.value, self.where, self.seen = value, where, seen
        self._taken: set[str] = set()
        self._extra: dict[str, Any] = {}

    def path(self, name: str) -> str:
        shown = name if name.isidentifier() and len(name) < 80 else f"{name!r:.80}"
        return f"{self.where}.{shown}" if self.where else shown

    def take(self, name: str, *kinds: type, default: Any = _MISSING) -> Any:
        """The field's value, which must have one of the types `kinds`; `default` if it is absent or null."""
        self._taken.add(name)
        value = self.value.get(name)
        if value is None:
            if default is _MISSING:
                raise InputError(f"{self.path(name)}: is {'null' if name in self.value else 'missing'}")
            return default
        if type(value) is int and float in kinds:
            return value
        if type(value) not in kinds:
            expected = " or ".join(_NAMES[kind] for kind in kinds)
            raise InputError(f"{self.path(name)}: expected {expected}, got {kind_of(value)}")
        return value

    def skip(self, *names: str) -> None:
        """Mark fields as read that other code reads."""
        self._taken.update(names)

    def take_label(self, name: str) -> str | None:
        """An id, given as text or as an integer; None if it is absent."""
        value = self.take(name, str, int, default=None)
        return None if value is None else str(value)

    def objects(self, name: str, *, default: Any = _MISSING) -> Iterator["Fields"]:
        """The objects of a list; the caller handles the remaining fields of each."""
        for i, value in enumerate(self.take(name, list, default=default)):
            yield Fields(value, f"{self.path(name)}[{i}]", self.seen)

    def child(self, name: str) -> "Fields":
        """The object of this name; empty if it is absent."""
        return Fields(self.take(name, dict, default={}), self.path(name), self.seen)

    def keep(self, *names: str) -> None:
        """Keep known fields that the normal form lacks in `extra`, even if unknown fields are refused."""
        for name in names:
            if name in self.value and name not in self._taken:
                self._taken.add(name)
                self.add(name, self.value[name])

    def leave_out(self, *names: str) -> None:
        """Drop fields that only repeat what is read elsewhere; they are counted."""
        for name in names:
            if name in self.value and name not in self._taken:
                self._taken.add(name)
                self.count_left_out(self.path(name))

    def count_left_out(self, path: str) -> None:
        self.seen.left_out[_INDEX.sub("[]", path)[:200]] += 1

    def add(self, name: str, value: Any) -> None:
        """Keep a value in `extra`. Raises InputError if the name is already there."""
        if name in self._extra:
            raise InputError(f"{self.path(name)}: also given in `extra`")
        self._extra[name] = value

    def rest(self) -> dict[str, Any]:
        """`extra`: the kept fields and those that were not read, without nulls, which fill the columns of a table and
        are counted. Raises InputError for a field that was not read if it changes what the record means, or with
        `unknown: refuse`."""
        for name, value in self.value.items():
            if name in self._taken:
                continue
            if value is None:
                self.count_left_out(self.path(name))
                continue
            if self.where:  # the fields of the record itself were looked at before any was read
                refuse_field(name, value, self.path(name))
            if self.seen.unknown == "refuse":
                choices = sorted(self._taken)
                near = did_you_mean(name, choices) if len(name) < 512 else ""
                raise InputError(f"{self.path(name)}: unknown field; expected {', '.join(choices)}{near}")
            self.seen.kept[_INDEX.sub("[]", self.path(name))[:200]] += 1
            self.add(name, value)
        self._taken.update(self.value)
        return self._extra


def kind_of(value: Any) -> str:
    """The JSON type of a value, for messages."""
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)
