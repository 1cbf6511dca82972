"""Trajectories: agents' conversations with tools, in one of the known formats (docs/reference/trajectories.md)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.sources.files import PathSource
from data.trajectories.files import DOCUMENTS, LINES
from data.trajectories.filters.config import FilterConfig, ScrubConfig
from data.trajectories.weights import OutcomeWeights
from maverick_jax.settings.section import Section


class TrajectoriesConfig(Section):
    """How trajectories are read, rendered and cut."""

    format: Literal["ours", "openai", "tau_bench", "swe_agent", "sharegpt", "atif", "adp"] | None = None
    """Of the files; null: each file's first record tells."""
    dialect: Literal["meta_pythonic", "meta_json", "hugging_face"] | None = None
    """How tools are written; null: as the tokenizer's model does, or else meta_pythonic."""
    tools: str | None = None
    """A JSON file that declares the tools, for trajectories that do not."""
    unknown: Literal["keep", "refuse"] = "keep"
    """Whether fields without a meaning here make a record malformed."""
    malformed: Literal["stop", "skip"] = "stop"
    """What a malformed record does: `stop` ends with an error; `skip` leaves it out, logged and counted."""
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.25
    """Of trajectories longer than a row: part of a window, beside system message and tools, for turns before the cut,
    which are read again and not learned again."""
    outcomes: OutcomeWeights = OutcomeWeights()
    """Weights of whole trajectories by how they ended."""
    balance_decisions: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Where a turn decides to call, to answer or to ask: weight times a factor that is inverse to how many turns to
    train on decide so, this much at most, its mean over these turns 1. null: as many as there are."""
    filter: FilterConfig | None = None
    """Which trajectories are left out; null: none."""
    scrub: ScrubConfig | None = None
    """What personal data is replaced; null: none."""


class TrajectoriesSource(PathSource):
    """`kind: trajectories`: files of trajectories."""

    suffixes: ClassVar = (*LINES, *DOCUMENTS)

    kind: Literal["trajectories"] = "trajectories"
    """Trajectories."""
    format: Annotated[Literal["trajectories"], Field(exclude=True)] = "trajectories"
    """The same as `kind: trajectories`; the format of the files is `trajectories.format`."""
    trajectories: TrajectoriesConfig = TrajectoriesConfig()
    """How they are read, rendered and cut."""
