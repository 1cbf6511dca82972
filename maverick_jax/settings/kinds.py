"""Unions of config sections, distinguished by their `kind`. Other packages can add members."""

import typing
from typing import Any, Generic, TypeVar

import pydantic
from pydantic_core import core_schema

from maverick_jax.errors import InputError
from maverick_jax.settings.section import Section

S = TypeVar("S", bound=Section)


class Kinds(Generic[S]):
    """The members of one union. As metadata of a field's type it makes the field accept any member: `objective:
    Annotated[Objective, OBJECTIVES]`."""

    def __init__(self, name: str, base: type[S], *, default: str | None = None):
        """`name`: the name of a member in messages. `default`: the kind of a section without `kind`."""
        self.name, self.base, self.default = name, base, default
        self.members: dict[str, type[S]] = {}

    def register(self, section: type[S]) -> type[S]:
        """Adds a member; a class decorator. The field `kind` of the class must be a Literal of one string. Raises
        InputError for a class that is not a subclass of `base`, has no such field, or has a kind that is taken."""
        if not (isinstance(section, type) and issubclass(section, self.base)):
            raise InputError(f"{self.name}: {section!r} is not a subclass of {self.base.__name__}")
        kind = _kind_of(section)
        if kind is None:
            raise InputError(f'{self.name}: {section.__name__} needs a field `kind: Literal["NAME"] = "NAME"`')
        if self.members.setdefault(kind, section) is not section:
            taken = self.members[kind]
            raise InputError(f"{self.name}: the kind {kind!r} of {_path(section)} is taken by {_path(taken)}")
        return section

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler):
        choices = {kind: handler.generate_schema(section) for kind, section in self.members.items()}
        union = core_schema.tagged_union_schema(choices, discriminator="kind")
        return union if self.default is None else core_schema.no_info_before_validator_function(self._with_kind, union)

    def _with_kind(self, section: Any) -> Any:
        return {"kind": self.default, **section} if isinstance(section, dict) else section


def _kind_of(section: type[Section]) -> str | None:
    """The single value of the Literal `kind`, which must also be its default; None if there is no such field."""
    field = section.model_fields.get("kind")
    if field is None or typing.get_origin(field.annotation) is not typing.Literal:
        return None
    values = typing.get_args(field.annotation)
    return field.default if values == (field.default,) and isinstance(field.default, str) else None


def _path(section: type) -> str:
    return f"{section.__module__}.{section.__qualname__}"
