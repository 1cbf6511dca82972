"""Preferences: pairs of answers or of whole runs (docs/guides/alignment.md)."""

from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field

from data.environments import AnyEnvironment
from data.preferences.weights import PairWeights
from data.sources.files import PathSource
from data.trajectories.files import DOCUMENTS, LINES
from maverick_jax.settings.section import Section


class PreferencesConfig(Section):
    """How pairs are read or made, and rendered."""

    make: Literal["outcomes", "corruptions", "violations"] | None = None
    """How pairs are made of trajectories. `outcomes`: of two runs of one task, the one that succeeded is preferred;
    `corruptions`: a run that succeeded is preferred to the same run with a mistake; `violations`: a run that keeps the
    rules of `policy` is preferred to one that breaks them. null: the files hold pairs."""
    policy: str | None = None
    """For `make: violations`: the policy file, a path or `package:NAME`."""
    replay: AnyEnvironment | None = None
    """For `make: corruptions`: the environment in which the runs were made. Only mistakes are kept with which a run
    fails when the environment carries it out again; the id of a run ends with the seed of its episode. null: nothing
    is replayed."""
    per_task: Annotated[int, Field(ge=1)] = 16
    """Most pairs that are made for one task (`outcomes`, `violations`) and of one run (`corruptions`, `violations`)."""
    form: Literal["ours", "trl", "hh", "sharegpt", "ms_swift", "unpaired"] | None = None
    """Form of the pairs in the files. null: the first record of each file determines it."""
    dialect: Literal["meta_pythonic", "meta_json", "hugging_face"] | None = None
    """Dialect in which tools and calls are written. null: the dialect of the tokenizer's model, or else
    meta_pythonic."""
    tools: str | None = None
    """A JSON file with tool declarations, for records without their own."""
    unknown: Literal["keep", "refuse"] = "keep"
    """Whether fields of unknown meaning are kept, or make a record malformed."""
    malformed: Literal["stop", "skip"] = "stop"
    """What happens with a malformed record. `stop`: an error; `skip`: the record is logged, counted and skipped."""
    kind_weights: PairWeights = PairWeights()
    """Weights of tokens in the log-probability of a side, by token kind."""
    prefix: Literal["cancel", "keep"] = "cancel"
    """Whether the tokens before the first difference of the two sides count. `cancel`: they weigh 0, since they are
    equally likely in both; `keep`: they have their weights."""
    mismatched: bool = False
    """Whether answers are also paired with the prompt of another one, which `pair_loss.kind: kto` reads. Sides must
    differ in their last message alone."""

    @pydantic.model_validator(mode="after")
    def _has_a_policy(self):
        if (self.make == "violations") != (self.policy is not None):
            raise ValueError("policy: a file of rules and make: violations require each other")
        if self.replay is not None and self.make != "corruptions":
            raise ValueError("replay: certifies mistakes; expected make: corruptions")
        return self


class PreferencesSource(PathSource):
    """`kind: preferences`: files of pairs, or of trajectories of which pairs are made."""

    suffixes: ClassVar = (*LINES, *DOCUMENTS)
    compressed_suffixes: ClassVar = suffixes

    kind: Literal["preferences"] = "preferences"
    """Preferences."""
    format: Annotated[Literal["preferences"], Field(exclude=True)] = "preferences"
    """The same as `kind: preferences`; the form of the pairs is `preferences.form`."""
    preferences: PreferencesConfig = PreferencesConfig()
    """How the pairs are read or made, and rendered."""
