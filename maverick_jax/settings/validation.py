"""From a document to a section of the config: every error of one pass, in the user's terms.

Pydantic finds the errors; here each gets its dotted key, the line it was written in, and the nearest valid choice.
"""

import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import pydantic.fields

from maverick_jax.settings.kinds import Kinds
from maverick_jax.settings.section import Section, did_you_mean
from maverick_jax.settings.strict_yaml import Document, Problem, join, raise_problems

S = TypeVar("S", bound=Section)


def validate(section: type[S], document: Document, *, also: Iterable[str] = ()) -> S:
    """`document` as a `section`. Raises InputError with one line per problem.

    `also`: dotted keys that were valid in the text although the section has no such field (`base`).
    """
    value, problems = check(section, document, also=also)
    raise_problems(problems)
    assert value is not None
    return value


def check(section: type[S], document: Document, *, also: Iterable[str] = ()) -> tuple[S | None, list[Problem]]:
    """As `validate`, with the problems returned: those of the text first, then those of the values."""
    problems = list(document.problems)
    if document.data is None:
        document.data = {}
    try:
        # As JSON, where a list may stand for a tuple; strict otherwise.
        return section.model_validate_json(json.dumps(document.data)), problems
    except pydantic.ValidationError as error:
        return None, problems + _Translation(section, document, tuple(also)).problems(error)


class _Translation:
    def __init__(self, section: type[Section], document: Document, also: tuple[str, ...]):
        self.section, self.document, self.also = section, document, also

    def problems(self, error: pydantic.ValidationError) -> list[Problem]:
        """One problem per key. The alternatives of a union fail one by one: they are joined with "or"."""
        messages: dict[str, list[str]] = {}
        suggested: set[str] = set()
        refused = {problem.key for problem in self.document.problems}
        details = sorted(error.errors(include_url=False), key=lambda d: d["type"] == "missing")
        for detail in details:
            key = self.key(detail)
            if detail["type"] == "extra_forbidden":
                near = self.nearest_key(key)
                suggested.update(near)
                elsewhere = not near and key in keys(self.section)
                message = "a key of another kind than this one" if elsewhere else "unknown key"
                message += "".join(f"; did you mean {n}?" for n in near)
            elif detail["type"] == "missing" and (key in suggested or self.lost_with_a_base(key)):
                continue  # said already: its misspelling, or the base that would have given it
            elif detail["input"] is None and key in refused:
                continue  # said already: what was written there
            else:
                key, message = self.message(key, detail)
            if message not in messages.setdefault(key, []):
                messages[key].append(message)
        return [Problem(self.document.place(key), key, " or ".join(m)) for key, m in messages.items()]

    def key(self, detail: Any) -> str:
        """The dotted key of an error. Its location also names union members, which no file has: they are dropped."""
        key, data = "", self.document.data
        for i, part in enumerate(detail["loc"]):
            if isinstance(data, dict) and part in data:
                data = data[part]
            elif isinstance(data, list) and isinstance(part, int) and part < len(data):
                data = data[part]
            elif not (detail["type"] == "missing" and i == len(detail["loc"]) - 1):
                continue
            key = join(key, part)
        return key

    def message(self, key: str, detail: Any) -> tuple[str, str]:
        kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
        if kind == "missing":
            return key, "required, but not given"
        if kind == "value_error":
            return key, str(context["error"])
        if kind in ("literal_error", "union_tag_invalid", "enum"):
            if kind == "union_tag_invalid":
                key, given = join(key, context["discriminator"].strip("'")), context["tag"]
            choices = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
            return key, f"{given!r} is not one of {', '.join(choices)}{did_you_mean(given, choices)}"
        if kind == "union_tag_not_found":
            return join(key, context["discriminator"].strip("'")), "required, but not given"
        if kind in ("model_type", "model_attributes_type", "dict_type"):
            return key, f"must be a mapping, got {_shown(given)}"
        expected = re.sub(r"^(\w+) should ", "must ", detail["msg"])
        return key, f"{expected}, got {_shown(given)}"

    def lost_with_a_base(self, key: str) -> bool:
        sections = [p.key.rpartition(".")[0] for p in self.document.problems if p.key.rpartition(".")[2] == "base"]
        return any(section == "" or key.startswith(section + ".") for section in sections)

    def nearest_key(self, key: str) -> list[str]:
        """The dotted key that was probably meant by the unknown `key`: in its section if one is near, else anywhere."""
        section, _, name = key.rpartition(".")
        here = [k.rpartition(".")[2] for k in self.also if k.rpartition(".")[0] == section]
        here += _fields(_at(self.section, section.split(".") if section else [], self.document.data))
        if near := _nearest(name, here):
            return [join(section, near)]
        elsewhere = [k for k in keys(self.section) if k.rpartition(".")[2] == name]
        return [] if key in elsewhere else elsewhere[:1]


def keys(section: type[Section]) -> Iterator[str]:
    """Every dotted key of a section, through its mappings but not its lists."""
    for name, field in section.model_fields.items():
        yield name
        for inner in _models(_type_of(field)):
            yield from (join(name, k) for k in keys(inner))


def _nearest(word: str, choices: Iterable[str]) -> str | None:
    said = did_you_mean(word, choices)
    return said.removeprefix("; did you mean ").removesuffix("?") or None


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
    """The field's type with the metadata that pydantic keeps apart from it."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _models(annotation: Any) -> list[type[Section]]:
    return [a for a in _alternatives(annotation) if isinstance(a, type) and issubclass(a, Section)]


def _at(annotation: Any, path: list[str], data: Any) -> list[type[Section]]:
    """The sections that may stand at `path` under `annotation`, given what `data` says of their kinds."""
    if not path:
        models = _models(annotation)
        return [m for m in models if _kind_agrees(m, data)] or models
    part, rest = path[0], path[1:]
    found: list[type[Section]] = []
    for alternative in _alternatives(annotation):
        if isinstance(alternative, type) and issubclass(alternative, Section):
            inner = [_type_of(alternative.model_fields[part])] if part in alternative.model_fields else []
        else:  # list[X], dict[str, X], tuple[X, ...]
            inner = list(typing.get_args(alternative))[-1:] if typing.get_origin(alternative) in (list, dict) else []
            inner = inner or list(typing.get_args(alternative))[:1]
        for annotation_inside in inner:
            found += _at(annotation_inside, rest, _item(data, part))
    return found


def _item(data: Any, part: str) -> Any:
    if isinstance(data, dict):
        return data.get(part)
    return data[int(part)] if isinstance(data, list) and part.isdigit() and int(part) < len(data) else None


def _kind_agrees(model: type[Section], data: Any) -> bool:
    """Whether no single-valued Literal field of `model` (the tag of a union) contradicts `data`."""
    if not isinstance(data, dict):
        return True
    tags = {
        name: typing.get_args(field.annotation)
        for name, field in model.model_fields.items()
        if typing.get_origin(field.annotation) is Literal and name in data
    }
    return all(data[name] in values for name, values in tags.items() if len(values) == 1)


def _fields(models: Iterable[type[Section]]) -> list[str]:
    return [name for model in models for name in model.model_fields]
