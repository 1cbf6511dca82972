"""Stages of a run: what a config says of one, and what a stage is as a config of its own.

A stage is the run's config with the stage's changes merged over it, by the rules of a config's `base`: mappings entry
by entry, lists and scalars replace, null removes a mapping. A section of another `kind` than the run's replaces it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import pydantic
from pydantic import Field

from data.rows.course import StageData
from maverick_jax.settings import shipped
from maverick_jax.settings.section import Section, did_you_mean
from maverick_jax.settings.strict_yaml import Document, Location, Problem

STAGES = "stages"
SECTIONS = ("run", "model", "mesh", "data", "objective", "trainable", "optimizer", "guard")
"""Sections that may differ between stages."""
OF_A_STAGE = ("eval_every", "eval_batches", "eval_tasks", "eval_tasks_every", "skip_budget")
"""Keys of `run` that may differ between stages."""
SCHEDULE = ("kind", "learning_rate", "warmup_steps", "schedule", "decay_fraction", "min_ratio")
"""Keys of `optimizer` with which a stage has a segment of the schedule of its own."""
Changes = dict[str, Any]


class StageSection(Section):
    """One stage of a run. Its sections have only what differs from the run's."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Letters, digits, `.`, `_` and `-`. Lines of metrics have it as `stage`."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps of the stage. null: as many as `tokens` need."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of the stage, rounded up to whole steps. null: as `steps` says."""
    run: Changes = {}
    """The stage's own evaluations and `skip_budget`."""
    model: Changes = {}
    """Attention of local layers, rotary embedding, temperature, balance, precision, `remat`; the parameters stay."""
    mesh: Changes = {}
    """On the same devices."""
    data: Changes = {}
    """Sources that stay go on where the stage before stopped."""
    objective: Changes | str = {}
    trainable: Changes = {}
    optimizer: Changes = {}
    """With keys of the schedule, the stage has a segment of its own: it begins and ends with the stage."""
    guard: Changes = {}

    @pydantic.model_validator(mode="after")
    def _has_a_length(self):
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("a stage has either steps or tokens")
        return self

    @property
    def has_own_schedule(self) -> bool:
        return any(key in self.optimizer for key in SCHEDULE)

    def steps_of(self, tokens_per_step: int) -> int:
        return self.steps if self.steps is not None else -(-(self.tokens or 0) // tokens_per_step)


@dataclasses.dataclass(frozen=True, eq=False)
class StagePlace:
    """Where a stage lies in its run."""

    run: Any
    """The config of the whole run."""
    name: str = ""
    """Empty: the run has no stages."""
    number: int = 0
    first: int = 0
    """Steps before it."""
    steps: int = 0
    scheduled: tuple[int, int] = (0, 0)
    """The step before the first of the schedule that it follows, and how many steps this has."""
    course: tuple[StageData, ...] = ()
    """The data of all stages."""


def stage_document(document: Document, number: int) -> Document:
    """The config of stage `number` of a config with stages, as a document: its places are those of the stage's keys
    where it has them."""
    inside = f"{STAGES}.{number}."
    stage = document.data[STAGES][number]
    base = {key: _plain(value) for key, value in document.data.items() if key != STAGES}
    own = {key: _plain(stage[key]) for key in SECTIONS if stage.get(key)}
    for key in ("objective", "optimizer"):
        if isinstance(section := own.get(key), dict) and section.get("kind", kind := _kind(base, key)) != kind:
            base.pop(key, None)
    places = {key: place for key, place in document.places.items() if not f"{key}.".startswith(f"{STAGES}.")}
    places |= {key.removeprefix(inside): place for key, place in document.places.items() if key.startswith(inside)}
    merged = Document(shipped.merge(base, own), places, [])
    merged.data.setdefault("run", {})["steps"] = 1  # the real number follows from the stages before it
    return merged


def _plain(value: Any) -> Any:
    """A copy without the marks of mappings that replace others (`shipped.Whole`): the command line has set them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _kind(data: dict[str, Any], key: str) -> Any:
    return section.get("kind") if isinstance(section := data.get(key), dict) else section


def problems_of_stages(document: Document) -> list[Problem]:
    """What is wrong with the list itself, beside the types of its keys."""
    found, names = [], []
    for number, stage in enumerate(document.data[STAGES]):
        inside, name = f"{STAGES}.{number}", stage["name"]
        if name in names:
            found.append(Problem(document.place(f"{inside}.name"), f"{inside}.name", f"{name} is there twice"))
        names.append(name)
        for key in [key for key in stage.get("run", {}) if key not in OF_A_STAGE]:
            at, said = f"{inside}.run.{key}", f"is of the whole run; a stage may have {', '.join(OF_A_STAGE)}"
            found.append(Problem(document.place(at), at, said + did_you_mean(key, OF_A_STAGE)))
    return found


def in_stage(number: int, problem: Problem, document: Document) -> Problem:
    """A problem of a stage's config, with the key and the place that the run's config has."""
    inside = f"{STAGES}.{number}."
    key, message = f"{inside}{problem.key}".rstrip("."), problem.message
    if message.startswith("unknown key; did you mean "):
        message = message.replace("you mean ", f"you mean {inside}")
    return Problem(problem.place if problem.place.line is None else document.place(key), key, message)


def given_steps(document: Document) -> Location | None:
    """Where `run.steps` is given beside the stages: in the file of the list, or on the command line. That of a base
    is the base's own length."""
    place, run = document.places.get("run.steps"), document.data.get("run")
    if place is None or not isinstance(run, dict) or run.get("steps") is None:
        return None
    return place if place.line is None or place.source == document.place(STAGES).source else None


def chosen(names: Sequence[str], name: str | None) -> int | str:
    """The number of the stage that is meant, or what is wrong."""
    listed = ", ".join(names)
    if name is None:
        return 0 if len(names) == 1 else f"the config has stages; name one with stage=NAME ({listed})"
    if name not in names:
        return f"stage: no stage is named {name!r}{did_you_mean(name, names)} (known: {listed or 'none'})"
    return names.index(name)
