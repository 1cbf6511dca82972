"""Unions that are open: members by kind, members added later, and errors for what is no member."""

from typing import Annotated, Literal

import pydantic
import pytest

from maverick_jax.errors import InputError
from maverick_jax.settings import validation
from maverick_jax.settings.kinds import Kinds
from maverick_jax.settings.section import Section
from maverick_jax.settings.strict_yaml import parse


class Shape(Section):
    kind: str


class Circle(Shape):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Square(Shape):
    kind: Literal["square"] = "square"
    side: float = 1.0


def union(*members: type[Shape], default: str | None = None) -> tuple[Kinds[Shape], type[Section]]:
    """A union of these, and a section with a field `one` and a mapping `many` of it."""
    kinds = Kinds("shape", Shape, default=default)
    for member in members:
        kinds.register(member)

    class Drawing(Section):
        one: Annotated[Shape, kinds]
        many: dict[str, Annotated[Shape, kinds]] = {}

    return kinds, Drawing


def read(section, text: str):
    return validation.validate(section, parse(text, "f.yaml"))


def test_a_section_is_read_as_the_member_of_its_kind():
    _, drawing = union(Circle, Square)
    found = read(drawing, "one: {kind: square, side: 2.0}\nmany: {a: {kind: circle}}")
    assert found.one == Square(side=2.0)
    assert found.many == {"a": Circle()}
    assert read(drawing, found.model_dump_json()) == found


def test_a_section_without_a_kind_is_the_default():
    assert read(union(Circle, Square, default="circle")[1], "one: {radius: 3.0}").one == Circle(radius=3.0)
    with pytest.raises(InputError, match=r"f.yaml:1: one.kind: required, but missing"):
        read(union(Circle, Square)[1], "one: {radius: 3.0}")


def test_errors_name_the_key_and_the_nearest_choice():
    _, drawing = union(Circle, Square)
    with pytest.raises(InputError, match=r"one.kind: 'sqare' is not one of circle, square; did you mean square\?"):
        read(drawing, "one: {kind: sqare}")
    with pytest.raises(InputError, match=r"one.sid: unknown key; did you mean one.side\?"):
        read(drawing, "one: {kind: square, sid: 2.0}")
    with pytest.raises(InputError, match=r"many.a.raduis: unknown key; did you mean many.a.radius\?"):
        read(drawing, "one: {kind: square}\nmany: {a: {kind: circle, raduis: 1.0}}")
    with pytest.raises(InputError, match=r"one.radius: a key of kind: circle; this one is of kind: square"):
        read(drawing, "one: {kind: square, radius: 2.0}")


def test_a_member_can_be_added_to_a_section_that_is_built():
    kinds, drawing = union(Circle)
    with pytest.raises(InputError, match="'square' is not one of circle"):
        read(drawing, "one: {kind: square}")
    kinds.register(Square)
    drawing.model_rebuild(force=True)
    assert read(drawing, "one: {kind: square}").one == Square()
    assert "Square" in drawing.model_json_schema()["$defs"]


def test_what_cannot_be_registered():
    kinds, _ = union(Circle)

    class Other(Section):
        kind: Literal["other"] = "other"

    class Kindless(Shape):
        pass

    class AlsoCircle(Shape):
        kind: Literal["circle"] = "circle"

    with pytest.raises(InputError, match="is not a subclass of Shape"):
        kinds.register(Other)  # pyright: ignore
    with pytest.raises(InputError, match="Kindless needs a field `kind"):
        kinds.register(Kindless)
    with pytest.raises(InputError, match=r"the kind 'circle' of .*AlsoCircle is taken by .*Circle"):
        kinds.register(AlsoCircle)
    assert kinds.register(Circle) is Circle  # again, as a module that is imported twice does


def test_the_schema_lists_the_members():
    schema = union(Circle, Square)[1].model_json_schema()
    assert schema["properties"]["one"]["discriminator"]["propertyName"] == "kind"
    assert isinstance(pydantic.TypeAdapter(Circle).json_schema(), dict)
