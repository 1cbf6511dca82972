"""Validate a document as a config section, and report all errors at once.

Pydantic finds the errors; this module adds the dotted key, the line and the nearest valid choice to each.
"""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import pydantic.fields

from maverick_jax.settings.kinds import Kinds
from maverick_jax.settings.section import SYNONYMS, Section, did_you_mean
from maverick_jax.settings.strict_yaml import Document, Problem, join, raise_problems

S = TypeVar("S", bound=Section)


def validate(section: type[S], document: Document, *, also: Iterable[str] = ()) -> S:
    """Validate `document` as a `section`. Raises InputError with one line per problem.

    `also`: dotted keys that the text may contain although the section has no such field (`base`).
    """
    value, problems = check(section, document, also=also)
    raise_problems(problems)
    assert value is not None
    return value


def check(section: type[S], document: Document, *, also: Iterable[str] = ()) -> tuple[S | None, list[Problem]]:
    """Like `validate`, but returns the problems: first problems of the text, then of the values."""
    problems = list(document.problems)
    if document.data is None:
        document.data = {}
    try:
        # JSON mode accepts a list for a tuple; otherwise validation is strict.
        return section.model_validate_json(json.dumps(document.data)), problems
    except pydantic.ValidationError as error:
        return None, problems + _Translation(section, document, tuple(also)).problems(error)


class _Translation:
    def __init__(self, section: type[Section], document: Document, also: tuple[str, ...]):
        self.section, self.document, self.also = section, document, also

    def problems(self, error: pydantic.ValidationError) -> list[Problem]:
        """One problem per key. The members of a union fail one by one; their messages are joined with "or"."""
        messages: dict[str, list[str]] = {}
        suggested: set[str] = set()
        refused = {problem.key for problem in self.document.problems}
        details = sorted(error.errors(include_url=False), key=lambda d: d["type"] == "missing")
        for detail in details:
            key, here = self.key(detail)
            if detail["type"] == "extra_forbidden":
                near, message = [], here.of_another_kind(key.rpartition(".")[2])
                if message is None:
                    near = self.nearest_key(key, here)
                    message = "".join(["unknown key", *(f"; did you mean {n}?" for n in near)])
                suggested.update(near)
            elif detail["type"] == "missing" and (key in suggested or self.lost_with_a_base(key)):
                continue  # already reported: its misspelling, or the missing base that would have provided it
            elif detail["type"] == "too_short" and len(detail["input"]) >= detail.get("ctx", {})["min_length"]:
                continue  # already reported: the items that were refused
            elif detail["input"] is None and key in refused:
                continue  # already reported: the value was refused by the parser
            else:
                key, message = self.message(key, detail)
            if message not in messages.setdefault(key, []):
                messages[key].append(message)
        return [Problem(self.document.place(key), key, " or ".join(m)) for key, m in messages.items()]

    def key(self, detail: Any) -> tuple[str, "_Here"]:
        """The dotted key of an error without the union members in its location, which are not keys of the file, and the
        types allowed there."""
        key, here, data = "", _Here((self.section,)), self.document.data
        last = len(detail["loc"]) - 1
        for i, part in enumerate(detail["loc"]):
            if (member := here.member(part)) is not None:
                here = member
                continue
            if isinstance(data, dict) and part in data:
                data = data[part]
            elif isinstance(data, list) and isinstance(part, int) and part < len(data):
                data = data[part]
            elif not (detail["type"] == "missing" and i == last):
                continue
            key, here = join(key, part), here if i == last else here.inside(part)
        return key, here

    def message(self, key: str, detail: Any) -> tuple[str, str]:
        kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
        if kind == "missing":
            return key, "required, but missing"
        if kind == "value_error":
            return self.inner_key(key, str(context["error"]))
        if kind in ("literal_error", "union_tag_invalid", "enum"):
            if kind == "union_tag_invalid":
                key, given = join(key, context["discriminator"].strip("'")), context["tag"]
            choices = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
            return key, f"{given!r} is not one of {', '.join(choices)}{did_you_mean(given, choices)}"
        if kind == "union_tag_not_found":
            tag = context["discriminator"].strip("'")
            if near := difflib.get_close_matches(tag, given if isinstance(given, dict) else (), n=1, cutoff=0.7):
                return join(key, near[0]), f"unknown key; did you mean {join(key, tag)}?"
            return join(key, tag), "required, but missing"
        if kind in ("model_type", "model_attributes_type", "dict_type"):
            removes = "null, which removes a mapping of the base; the base has none of this name"
            return key, f"must be a mapping, got {removes if given is None else _shown(given)}"
        expected = re.sub(r" after validation, not \d+$", "", re.sub(r"^(\w+) should ", "must ", detail["msg"]))
        return key, f"{expected}, got {_shown(given)}"

    def inner_key(self, key: str, message: str) -> tuple[str, str]:
        """The key and message of a check that a section makes itself. Where the message begins with a key of the
        section that was written, as in "context: 2 is not supported", the error is that key's."""
        inner, colon, rest = message.partition(": ")
        written = colon and join(key, inner) in self.document.places
        return (join(key, inner), rest) if written else (key, message)

    def lost_with_a_base(self, key: str) -> bool:
        sections = [p.key.rpartition(".")[0] for p in self.document.problems if p.key.rpartition(".")[2] == "base"]
        return any(section == "" or key.startswith(section + ".") for section in sections)

    def nearest_key(self, key: str, here: "_Here") -> list[str]:
        """The dotted key most similar to the unknown `key` in its section, or else a key of the same name elsewhere; as
        a list of at most one."""
        section, _, name = key.rpartition(".")
        if (ours := SYNONYMS.get(name)) is not None:
            called = [k for k in keys(self.section) if ours in (k, k.rpartition(".")[2])]
            called.sort(key=lambda k: k.rpartition(".")[0] != section)
            if called:
                return called[:1]
        if section == "" and (inside := [k for k in keys(self.section) if k.rpartition(".")[2] == name]):
            return inside[:1]  # it is written one level too far out
        choices = [k.rpartition(".")[2] for k in self.also if k.rpartition(".")[0] == section]
        choices += [field for model in here.models for field in model.model_fields]
        if near := _nearest(name, choices):
            return [join(section, near)]
        elsewhere = [k for k in keys(self.section) if k.rpartition(".")[2] == name]
        return [] if key in elsewhere else elsewhere[:1]


def keys(section: type[Section]) -> Iterator[str]:
    """Every dotted key of a section, including those of nested sections but not those inside lists."""
    for name, field in section.model_fields.items():
        yield name
        for inner in _models(_type_of(field)):
            yield from (join(name, k) for k in keys(inner))


def _nearest(word: str, choices: Iterable[str]) -> str | None:
    hint = did_you_mean(word, choices)
    return hint.removeprefix("; did you mean ").removesuffix("?") or None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The members of a union, without the annotations around them."""
    if typing.get_origin(annotation) is Annotated:
        inner, *metadata = typing.get_args(annotation)
        unions = [m for m in metadata if isinstance(m, Kinds)]
        yield from unions[0].members.values() if unions else _alternatives(inner)
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _alternatives(member)
    else:
        yield annotation


def _type_of(field: pydantic.fields.FieldInfo) -> Any:
    """The field's type, with the metadata that pydantic stores separately."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _models(annotation: Any) -> list[type[Section]]:
    return [a for a in _alternatives(annotation) if isinstance(a, type) and issubclass(a, Section)]


@dataclasses.dataclass(frozen=True)
class _Here:
    """The types allowed at one place of a config."""

    types: tuple[Any, ...]
    union: tuple[type[Section], ...] = ()
    """The members of the tagged union that `types` was chosen from."""

    @property
    def models(self) -> list[type[Section]]:
        return [model for annotation in self.types for model in _models(annotation)]

    def member(self, part: Any) -> "_Here | None":
        """The member of the tagged union at this place with the tag `part`; None if there is none."""
        found = [] if self.union else [model for model in self.models if part in _tag(model).values()]
        return _Here((found[0],), tuple(self.models)) if found else None

    def inside(self, part: Any) -> "_Here":
        """The types allowed at the key or index `part` below this place."""
        inner: list[Any] = []
        for alternative in (a for annotation in self.types for a in _alternatives(annotation)):
            if isinstance(alternative, type) and issubclass(alternative, Section):
                inner += [_type_of(alternative.model_fields[part])] if part in alternative.model_fields else []
            else:  # list[X], dict[str, X], tuple[X, ...]
                inner += [a for a in typing.get_args(alternative)[:2] if a is not Ellipsis][-1:]
        return _Here(tuple(inner))

    def of_another_kind(self, name: str) -> str | None:
        """The message for a key `name` that only other members of the union have; None if no member has it."""
        others = [model for model in self.union if name in model.model_fields]
        if not others:
            return None
        tags = lambda models: " or ".join(dict.fromkeys(f"{k}: {v}" for m in models for k, v in _tag(m).items()))
        return f"a key of {tags(others)}; this one is of {tags(self.models)}"


def _tag(model: type[Section]) -> dict[str, Any]:
    """The field that tags a member of a union, and its value: the first field with a single allowed value."""
    for name, field in model.model_fields.items():
        if typing.get_origin(field.annotation) is Literal and len(values := typing.get_args(field.annotation)) == 1:
            return {name: values[0]}
    return {}
