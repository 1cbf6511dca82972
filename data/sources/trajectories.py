"""Trajectories: conversations of agents with tools, in one of the known formats (docs/reference/trajectories.md)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.latents import LatentSteps
from data.sources.files import PathSource
from data.trajectories.files import DOCUMENTS, LINES
from data.trajectories.filters.config import FilterConfig, ScrubConfig
from data.trajectories.weights import OutcomeWeights
from maverick_jax.settings.section import Section


class TrajectoriesConfig(Section):
    """How trajectories are read, rendered and cut."""

    format: (
        Literal["ours", "openai", "tau_bench", "swe_agent", "sharegpt", "atif", "adp", "alpaca", "prompt_completion"]
        | None
    ) = None
    """Format of the files. null: the first record of each file determines it."""
    dialect: Literal["meta_pythonic", "meta_json", "hugging_face"] | None = None
    """Dialect in which tools and calls are written. null: the dialect of the tokenizer's model, or else
    meta_pythonic."""
    tools: str | None = None
    """A JSON file with tool declarations, for trajectories without their own."""
    unknown: Literal["keep", "refuse"] = "keep"
    """Whether fields of unknown meaning are kept, or make a record malformed."""
    malformed: Literal["stop", "skip"] = "stop"
    """What happens with a malformed record. `stop`: an error; `skip`: the record is logged, counted and skipped."""
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.25
    """For trajectories longer than a row: the fraction of a window, not counting system message and tools, that may
    repeat turns before the cut. Repeated turns have no loss weight."""
    outcomes: OutcomeWeights = OutcomeWeights()
    """Weights of whole trajectories by their outcomes."""
    balance_decisions: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Balances the decisions to call, to answer and to ask. The weight where a turn decides is multiplied by a factor
    that is inverse to the number of training turns with that decision. This value is the factor's upper limit; its mean
    over these turns is 1. null: no factor."""
    latents: LatentSteps | None = None
    """Replaces the first steps of one thought of each trajectory by latent thoughts. A step is a line that is not
    empty; a hash decides which message it is. null: all thoughts stay text."""
    policy: str | None = None
    """A policy file, a path or `package:NAME`. Messages with a call that breaks it have weight 0, and violations are
    counted by rule. null: nothing is checked."""
    filter: FilterConfig | None = None
    """Drops trajectories. null: keeps all."""
    scrub: ScrubConfig | None = None
    """Replaces personal data. null: replaces none."""


class TrajectoriesSource(PathSource):
    """`kind: trajectories`: files of trajectories."""

    suffixes: ClassVar = (*LINES, *DOCUMENTS)
    compressed_suffixes: ClassVar = suffixes

    kind: Literal["trajectories"] = "trajectories"
    """Trajectories."""
    format: Annotated[Literal["trajectories"], Field(exclude=True)] = "trajectories"
    """The same as `kind: trajectories`; the format of the files is `trajectories.format`."""
    trajectories: TrajectoriesConfig = TrajectoriesConfig()
    """How the trajectories are read, rendered and cut."""
