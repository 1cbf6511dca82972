"""Strict YAML for config files: YAML 1.2 scalars, no tags or aliases, and the line of every key.

PyYAML's own loader follows YAML 1.1, where `3e-4` is text, `no` is false, `010` is 8 and `12:30:00` is 45000. It keeps
the last of duplicate keys, expands aliases without limit and constructs the objects that tags name. Here a plain scalar
is a null, boolean, integer, float or string by the core schema of YAML 1.2; tags, anchors, aliases and duplicate keys
are errors.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import yaml

from maverick_jax.errors import InputError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII
)
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a key was written: a file and a line (from 1), or the command line (no line)."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One error in a config; its `str` is the line shown to the user."""

    place: Location
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.place), self.key, self.message) if part)


@dataclasses.dataclass
class Document:
    """A parsed config: plain data, the place of each dotted key (`""` is the whole document), and the errors found."""

    data: Any
    places: dict[str, Location]
    problems: list[Problem]

    def place(self, key: str) -> Location:
        """Where `key` was written; for an absent key, the place of its nearest ancestor."""
        while key not in self.places and key:
            key = key.rpartition(".")[0]
        return self.places[key]


def join(key: str, last: str | int) -> str:
    """The dotted key of the entry `last` in `key`."""
    return f"{key}.{last}" if key else str(last)


def raise_problems(problems: list[Problem]) -> None:
    """Raise one InputError with a line per distinct problem, ordered by file and line, if there are any."""
    if problems:
        in_order = sorted(dict.fromkeys(problems), key=lambda p: (p.place.source, p.place.line or 0))
        raise InputError("\n".join(str(p) for p in in_order))


def read(path: pathlib.Path, shown: str | None = None) -> Document:
    """Parse the file `path`, called `shown` in messages. Raises InputError if it is not readable UTF-8 YAML."""
    shown = shown or str(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{shown}: larger than {MAX_BYTES >> 20} MiB, the limit for a config")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{shown}:{line}: not UTF-8 text (byte {error.start})") from None
    return parse(text, shown)


def parse(text: str, source: str) -> Document:
    """Parse the single document in `text`. Raises InputError if it is not YAML; YAML features that are not allowed
    here are listed in the document's `problems`."""
    document = Document(None, {"": Location(source, 1)}, [])
    try:
        builder = _Builder(text, document)
        document.data = builder.root()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise InputError(f"{Location(source, line)}: not YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise InputError(f"{source}:{line}: not YAML: character {error.character!r} is not allowed") from None
    return document


def parse_value(text: str, place: Location, key: str) -> Document:
    """Parse the value of an override of `key`: a scalar or a flow collection (`[1, 2]`, `{a: 1}`)."""
    inner = Document(None, {"": place}, [])
    builder = _Builder(text, inner, line=None)
    message = None
    try:
        inner.data = builder.root()
    except (yaml.YAMLError, InputError) as error:
        message = f"{getattr(error, 'problem', None) or 'not a YAML value'} in {text!r}"
    else:
        if builder.block:
            message = f"{text!r} is block-style YAML; expected a scalar, [list] or {{mapping}}"
        elif text[builder.end :].strip():
            message = f"{text!r} contains a comment or a second value"
    if message:
        return Document(None, {"": place}, [Problem(place, key, message + "; quote the value if it is text")])
    inner.problems = [Problem(place, join(key, p.key).rstrip("."), p.message) for p in inner.problems]
    return inner


def dump(data: Any) -> str:
    """YAML text that `parse` reads back as `data` (mappings with string keys, lists, scalars)."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Builder:
    """Builds plain data from the events of PyYAML's parser, which leaves tags, aliases and scalars unresolved."""

    def __init__(self, text: str, document: Document, line: int | None = 0):
        self.events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self.document = document
        self.source = document.places[""].source
        self.line = line
        """None if places have no line numbers (an override)."""
        self.end = 0
        """Index in the text of the end of the last value."""
        self.block = False
        """Whether any collection is written in block style."""

    def root(self) -> Any:
        data, documents = None, 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.problem(event, "", "a second document; a config has only one")
                    break
                data = self.value(next(self.events), "", 0)
        return data

    def place(self, event: Any) -> Location:
        return Location(self.source, None if self.line is None else event.start_mark.line + 1)

    def problem(self, event: Any, key: str, message: str) -> None:
        self.document.problems.append(Problem(self.place(event), key, message))

    def value(self, event: Any, key: str, depth: int) -> Any:
        """The data that starts at `event`, whose dotted key is `key`."""
        if depth > MAX_DEPTH:
            raise InputError(f"{self.place(event)}: nested more than {MAX_DEPTH} levels deep")
        self.end = max(self.end, event.end_mark.index)
        if isinstance(event, yaml.AliasEvent):
            self.problem(event, key, f"alias *{event.anchor} is not allowed; repeat the value")
            return None
        if event.anchor:
            self.problem(event, key, f"anchor &{event.anchor} is not allowed")
        if event.tag:
            self.problem(event, key, f"tag {event.tag} is not allowed")
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, key)
        self.block |= not event.flow_style
        build = self.mapping if isinstance(event, yaml.MappingStartEvent) else self.sequence
        return build(key, depth)

    def sequence(self, key: str, depth: int) -> list:
        items: list = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            item = join(key, len(items))
            self.document.places[item] = self.place(event)
            items.append(self.value(event, item, depth + 1))
        self.end = max(self.end, event.end_mark.index)
        return items

    def mapping(self, key: str, depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            name = self.value(event, key, depth + 1)
            if not isinstance(name, str):
                shown = event.value if isinstance(event, yaml.ScalarEvent) else "a collection"
                self.problem(event, key, f"a key must be a string, got {shown}")
                name = repr(name)
            inner = join(key, name)
            if name in entries:
                self.problem(event, inner, f"given twice (first in {self.document.places[inner]})")
            else:
                self.document.places[inner] = self.place(event)
            entries[name] = self.value(next(self.events), inner, depth + 1)
        self.end = max(self.end, event.end_mark.index)
        return entries

    def scalar(self, event: Any, key: str) -> bool | int | float | str | None:
        text = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.problem(event, key, "half of a surrogate pair is not a character")
            return None
        if not event.implicit[0]:  # a quoted or block scalar
            return text
        if text in _WORDS:
            return _WORDS[text]
        try:
            if _INT.fullmatch(text):
                if re.match(r"[-+]?0[0-9]", text):
                    self.problem(event, key, f"{text}: a leading zero; write {text.replace('0', '', 1)} or quote it")
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        except ValueError:
            self.problem(event, key, f"an integer of {len(text)} digits is too long")
            return None
        if _FLOAT.fullmatch(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text


class _Dumper(yaml.SafeDumper):
    """Quotes strings that `_Builder.scalar` would not read back as strings, and writes shared values repeatedly."""

    yaml_implicit_resolvers: dict = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern in (
    ("null", re.compile(r"~|null|Null|NULL|", re.ASCII)),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE")),
    ("int", _INT),
    ("float", _FLOAT),
):
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern.pattern})$"), None)
