"""Descriptions of config keys: the docstrings below them, read from the source when a schema is asked for.

pydantic can read them too (`use_attribute_docstrings`), but as each class is made, which was a fifth of every start.
"""

import ast
import functools
import inspect
import itertools
import sys
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema


def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """Key -> the docstring below it, here or in a class that is extended. Keys without one are left out."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        found |= _of_module(base.__module__).get(base.__qualname__, {})
    return {key: words for key, words in found.items() if key in section.model_fields}


class DescribedSchema(GenerateJsonSchema):
    """A JSON schema in which every key has its description. `Section.model_json_schema(schema_generator=...)`."""

    def model_schema(self, schema: Any) -> dict[str, Any]:
        found = super().model_schema(schema)
        for key, words in descriptions(schema["cls"]).items():
            found["properties"][key]["description"] = words
        return found


@functools.cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    """Qualified name of each class of a module -> its keys' docstrings."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (KeyError, OSError, TypeError):  # built in, or without a file
        return {}
    return dict(_classes(tree, ""))


def _classes(node: ast.AST, within: str) -> Iterator[tuple[str, dict[str, str]]]:
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.ClassDef):
            yield within + inner.name, dict(_docstrings(inner.body))
            yield from _classes(inner, f"{within}{inner.name}.")
        elif isinstance(inner, ast.FunctionDef):
            yield from _classes(inner, f"{within}{inner.name}.<locals>.")


def _docstrings(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for pair in itertools.pairwise(body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(words))):
                yield key, inspect.cleandoc(words)
