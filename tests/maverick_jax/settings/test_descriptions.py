"""Descriptions of config keys in schemas, beside pydantic's own reading of docstrings."""

import pydantic

from maverick_jax.settings.descriptions import DescribedSchema, descriptions
from maverick_jax.settings.section import Section


class Inner(Section):
    """A section in a section."""

    c: str = "x"
    """Of the inner section."""


class Outer(Section):
    """A section."""

    a: int = 1
    """First line
    and second."""
    silent: int = 2
    inner: Inner = Inner()
    """The inner one."""

    class Nested(Section):
        d: int = 0
        """Of a nested class."""


class Extended(Outer):
    b: int = 3
    """Of the extension."""


class ByPydantic(Extended):
    model_config = pydantic.ConfigDict(use_attribute_docstrings=True)

    e: int = 4
    """Read as the class is made."""


def test_docstrings_below_keys_are_read_as_pydantic_reads_them():
    assert descriptions(Outer.Nested) == {"d": "Of a nested class."}
    found = descriptions(ByPydantic)
    assert found["e"] == ByPydantic.model_fields["e"].description
    assert {key: found.get(key) for key in ("a", "silent", "b")} == {
        "a": "First line\nand second.",
        "silent": None,
        "b": "Of the extension.",
    }


def test_a_schema_describes_the_keys_of_all_its_sections():
    schema = Extended.model_json_schema(schema_generator=DescribedSchema)
    described = {key: value.get("description") for key, value in schema["properties"].items()}
    assert described == descriptions(Extended) | {"silent": None}
    assert schema["$defs"]["Inner"]["properties"]["c"]["description"] == "Of the inner section."


def test_a_class_without_source_has_no_descriptions():
    made = pydantic.create_model("Made", x=(int, 1))
    assert descriptions(made) == {}
