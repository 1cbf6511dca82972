"""Config sections of what a model may add to Llama 4 to reason: heads that see marked tokens, periods that repeat."""

import enum
from typing import Annotated, NamedTuple

import pydantic
from pydantic import Field

from maverick_jax.settings.section import Section


class Mark(enum.IntEnum):
    """What a token is to the reasoning heads. The renderer knows, by the kinds of tokens; ids never say. The numbers
    are those of the batch field `marks`."""

    NONE = 0
    SCHEMA = 1
    """Declarations of tools."""
    SCRATCH = 2
    """Thoughts of the assistant."""


class HeadGroup(NamedTuple):
    """The reasoning heads of a layer that see the tokens of one mark."""

    name: str
    """The group's name among the layer's parameters."""
    mark: Mark
    heads: int
    """Query heads; they share one key/value head."""
    tokens: int
    """Most tokens with the mark in a row."""


class ReasoningHeads(Section):
    """Additional attention heads in layers with rotary embedding. They see marked tokens of their segment, all earlier
    ones, however far back, without rotary embedding. Their result is multiplied by tanh(gain); their output matrices
    begin as zeros, so that the model begins as the model without them."""

    schema_heads: Annotated[int, Field(ge=0)] = 4
    """Heads, per layer, that see declarations of tools."""
    scratch_heads: Annotated[int, Field(ge=0)] = 0
    """Heads, per layer, that see the assistant's thoughts."""
    schema_tokens: Annotated[int, Field(ge=1)] = 2048
    """Most tokens of declarations in a row: rows with more are refused."""
    scratch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Most tokens of thoughts in a row: rows with more are refused."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Numbers in a period, from 0, of the layers that have the heads; null: all layers with rotary embedding."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if not self.groups:
            raise ValueError("schema_heads and scratch_heads are 0; expected 1 or more of one of them")
        return self

    @property
    def groups(self) -> tuple[HeadGroup, ...]:
        """The groups with heads."""
        schema = HeadGroup("schema", Mark.SCHEMA, self.schema_heads, self.schema_tokens)
        scratch = HeadGroup("scratch", Mark.SCRATCH, self.scratch_heads, self.scratch_tokens)
        return tuple(group for group in (schema, scratch) if group.heads)

    def on(self, number: int, rope: bool) -> bool:
        """Whether layer `number` of a period has the heads."""
        return rope if self.layers is None else number in self.layers


class Loops(Section):
    """Periods of layers that run several times, one after the other, with the same weights. From the second time on,
    their input is added to what they read, multiplied by a vector that begins as zeros."""

    periods: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]
    """The first period that is repeated, from 0, and the first after it that is not."""
    times: Annotated[int, Field(ge=1, le=64)] = 2
    """How often they run; in training with `drawn`, at most."""
    drawn: bool = False
    """Whether each training step runs them 1 to `times` times, drawn by a hash of the step."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        first, end = self.periods
        if first >= end:
            raise ValueError(f"periods: [{first}, {end}] holds no period; expected the second number to be larger")
        return self

    @property
    def trained_times(self) -> float:
        """How often they run in a training step, on average."""
        return (self.times + 1) / 2 if self.drawn else self.times
