"""Schemas lose the nulls that fill columns, and no null that is a value."""

import pytest

from maverick_jax.text.chat import Tool
from maverick_jax.text.chat.schemas import without_padding


def of(**properties):
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (of(city={"type": "string"}, unit=None), of(city={"type": "string"})),
        (of() | {"required": None}, of()),
        (of(a={"type": "string", "description": None, "enum": None}), of(a={"type": "string"})),
        (of(a=of(b=None, c={"type": "integer", "items": None})), of(a=of(c={"type": "integer"}))),
        (of(a={"type": "array", "items": of(b=None)}), of(a={"type": "array", "items": of()})),
        (of(a={"anyOf": [{"type": "null"}, of(b=None)]}), of(a={"anyOf": [{"type": "null"}, of()]})),
        ({"$defs": {"a": None, "b": of(c=None)}}, {"$defs": {"b": of()}}),
        ({"properties": None, "type": "object"}, {"type": "object"}),
    ],
)
def test_nulls_that_fill_columns_are_left_out(schema, expected):
    assert without_padding(schema) == expected == without_padding(expected)


@pytest.mark.parametrize(
    "schema",
    [
        of(a={"type": ["string", "null"]}),
        of(a={"type": "null"}),
        of(a={"type": "string", "default": None}),
        of(a={"enum": ["C", "F", None]}),
        of(a={"const": None}),
        of(a={"default": {"b": None}, "examples": [None, {"c": None}]}),
        of(default={"type": "string"}, null={"type": "string"}),
        {"additionalProperties": False},
    ],
)
def test_nulls_that_are_values_stay(schema):
    assert without_padding(schema) == schema


def test_a_property_called_default_is_left_out_if_it_is_null():
    assert without_padding(of(default=None, enum={"type": "string"})) == of(enum={"type": "string"})


def test_tools_are_declared_without_them():
    assert Tool("f", "", of(a=None) | {"required": None}).parameters == of()
