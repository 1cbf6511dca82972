"""Shipped configs, and configs that extend others with `base`.

A document may start with `base: OTHER`, a shipped name or a path relative to its own file. Its keys are then merged
into that document: mappings are merged entry by entry, lists and scalars replace, and null removes a mapping. A section
with shipped values may have a base too (`model: tiny` is short for `model: {base: tiny}`); a section with a base
replaces the section it would otherwise be merged into.
"""

import importlib.resources
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from maverick_jax.errors import InputError
from maverick_jax.settings import strict_yaml
from maverick_jax.settings.section import did_you_mean
from maverick_jax.settings.strict_yaml import Document, Problem, join

Named = Callable[[str], pathlib.Path]
"""Maps a shipped name to its file; raises InputError for an unknown name."""


def _folder() -> pathlib.Path:
    return pathlib.Path(str(importlib.resources.files("configs")))


def _names(folder: pathlib.Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def model_names() -> list[str]:
    return _names(_folder() / "model")


def run_names() -> list[str]:
    return _names(_folder())


def task_names() -> list[str]:
    return _names(_folder() / "task")


def model_path(name: str) -> pathlib.Path:
    """The file of the shipped model `name`. Raises InputError with the most similar name if there is none."""
    return _known(_folder() / "model", name, "model")


def is_model_file(source: str) -> bool:
    """Whether `source`, as in `Location.source`, is the file of a shipped model."""
    return pathlib.Path(source).parent == _folder() / "model"


def run_path(name: str) -> pathlib.Path:
    """The file of the shipped run config `name`. Raises InputError with the most similar name if there is none."""
    return _known(_folder(), name, "run")


def task_path(name: str) -> pathlib.Path:
    """The file of the shipped tasks `name`. Raises InputError with the most similar name if there is none."""
    return _known(_folder() / "task", name, "task")


def _known(folder: pathlib.Path, name: str, what: str) -> pathlib.Path:
    if name not in (names := _names(folder)):
        raise InputError(f"no shipped {what} is named {name!r}{did_you_mean(name, names)} (known: {', '.join(names)})")
    return folder / f"{name}.yaml"


def find(path_or_name: str, named: Named, *, beside: pathlib.Path = pathlib.Path()) -> pathlib.Path:
    """Resolve `path_or_name` to a file. A value with a `/` or a YAML suffix is a path relative to the folder `beside`;
    any other is a shipped name. Raises InputError if there is no such file."""
    if not ("/" in path_or_name or path_or_name.endswith((".yaml", ".yml"))):
        return named(path_or_name)
    path = beside / pathlib.Path(path_or_name).expanduser()
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such file{did_you_mean(path.name, siblings)}")
    return path


def read_document(
    path: pathlib.Path,
    named: Named,
    sections: Mapping[str, Named] | None = None,
    seen: tuple[pathlib.Path, ...] = (),
) -> Document:
    """Read the document in `path` and merge it into its bases.

    Args:
        path: the file.
        named: maps a name given as `base` to its file.
        sections: top-level keys that may have a base, each with the function that maps its names to files.
        seen: the files being read, to detect a base that leads back to one of them.

    A missing base is added to the document's problems. Raises InputError if `path` is not YAML or the bases form a
    cycle.
    """
    if path.resolve() in seen:
        raise InputError(f"{seen[-1]}: base: a cycle: " + " -> ".join(p.name for p in (*seen, path)))
    document = strict_yaml.read(path)
    if document.data is not None and not isinstance(document.data, dict):
        document.problems.append(Problem(document.place(""), "", "expected a mapping of keys to values"))
    if not isinstance(document.data, dict):
        document.data = {}
    document = expand_sections(document, sections or {}, beside=path.parent)
    base = _base_path(document, "base", document.data.pop("base", None), named, path.parent)
    if base is None:
        return document
    return on_top(read_document(base, named, sections, (*seen, path.resolve())), document)


def expand_sections(document: Document, sections: Mapping[str, Named], *, beside: pathlib.Path) -> Document:
    """Merge each of `sections` that names a base into that base, in place. The name stays under the key `base`."""
    for key, named in sections.items():
        own = document.data.get(key)
        if isinstance(own, str):
            own = {"base": own}
            document.places[join(key, "base")] = document.place(key)
        if not (isinstance(own, dict) and "base" in own):
            continue
        document.data[key] = own
        base = _base_path(document, join(key, "base"), own["base"], named, beside)
        if base is not None:
            under = read_document(base, named)
            document.data[key] = merge(under.data, own)
            document.places = {join(key, k).rstrip("."): p for k, p in under.places.items()} | document.places
            document.problems += under.problems
    return document


def _base_path(document: Document, key: str, base: object, named: Named, beside: pathlib.Path) -> pathlib.Path | None:
    """The file of the base that the document names at `key`; None if it names none or the file is missing."""
    if base is None:
        return None
    try:
        if not isinstance(base, str):
            raise InputError(f"must be a path or a shipped name, got {base!r}")
        return find(base, named, beside=beside)
    except InputError as error:
        document.problems.append(Problem(document.place(key), key, str(error)))
        return None


def on_top(under: Document, over: Document) -> Document:
    """The document `over` merged into the document `under`."""
    return Document(merge(under.data, over.data), under.places | over.places, under.problems + over.problems)


class Whole(dict):
    """A mapping that `merge` uses as a replacement instead of merging it entry by entry."""


def merge(under: dict, over: dict) -> dict:
    """`over` merged into `under`: mappings entry by entry, and any other value replaces. A mapping with a `base` and a
    `Whole` replace too; null removes a mapping; a mapping whose keys are indices changes those items of a list."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if value is None and isinstance(below, dict):
            del merged[key]
        elif isinstance(value, Whole):
            merged[key] = _replacement(below, value)
        elif not isinstance(value, dict) or "base" in value:
            merged[key] = value
        elif isinstance(below, dict):
            merged[key] = merge(below, value)
        elif isinstance(below, list) and value and all(k.isdigit() and int(k) < len(below) for k in value):
            items = merge({str(i): item for i, item in enumerate(below)}, value)
            merged[key] = [items[str(i)] for i in range(len(below))]
        else:
            merged[key] = value
    return merged


def _replacement(under: Any, over: Any) -> Any:
    """`over`, which replaces `under`, without the nulls that stand for mappings of `under`: they are removed anyway."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    kept = {k: v for k, v in over.items() if not (v is None and isinstance(under.get(k), dict))}
    return {k: _replacement(under.get(k), v) for k, v in kept.items()}
