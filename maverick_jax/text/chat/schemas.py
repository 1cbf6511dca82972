"""JSON schemas of tools, without the nulls that only fill up the columns of a table.

A library that keeps records as columns (Arrow, and so Hugging Face datasets and Parquet) gives every object of a column
all the keys that any of them has, and null where there was none. To a model, a null property looks like a parameter.
"""

from collections.abc import Mapping
from typing import Any

MAY_BE_NULL = ("default", "const")
VALUES = (*MAY_BE_NULL, "enum", "example", "examples")
"""Keywords whose values are data and not schemas."""
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords with an object of schemas by name."""


def without_padding(schema: Any) -> Any:
    """`schema` without keywords and properties that are null, at any depth. A `default` or `const` of null stays, a
    null inside an `enum` or an example too, and so does the type null, which is a text."""
    if isinstance(schema, list):
        return [without_padding(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {key: _value(key, value) for key, value in schema.items() if value is not None or key in MAY_BE_NULL}


def _value(key: str, value: Any) -> Any:
    if key in VALUES:
        return value
    if key in NAMED and isinstance(value, Mapping):
        return {name: without_padding(inner) for name, inner in value.items() if inner is not None}
    return without_padding(value)
