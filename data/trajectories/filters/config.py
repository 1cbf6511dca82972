"""What is asked of runs before they are learnt from, and what is replaced in them."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from maverick_jax.settings.section import Section

Fraction = Annotated[float, Field(gt=0, le=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
RuleName = Literal["email", "iban", "credit_card", "us_ssn", "phone", "ip"]
RULE_NAMES: tuple[RuleName, ...] = ("email", "iban", "credit_card", "us_ssn", "phone", "ip")


class FilterConfig(Section):
    """Which runs are left out. Each rule that is null, false or 1.0 is off."""

    exact_duplicates: bool = True
    """Leave out a run that says and calls, with the same tools, what an earlier one does."""
    near_duplicates: Fraction | None = None
    """Leave out a run whose word shingles (policy and tools left out) have at least this Jaccard similarity, estimated
    by MinHash, with those of an earlier one. Needs the extra `dedup`."""
    shingle_words: Positive = 5
    """Words of a shingle."""
    loops: Annotated[int, Field(ge=2)] | None = 3
    """Leave out a run that makes the same call, or round of up to four calls, with the same results this many times in
    a row."""
    malformed_calls: bool = True
    """Leave out a run with a call that its tools' declarations do not allow and that was no error: a failed one is
    the matter of `unrecovered_failures`."""
    empty_final: bool = True
    """Leave out a run that ends in calls without results, or whose last assistant message says and calls nothing."""
    unrecovered_failures: Natural | None = 1
    """Leave out a run with more failed calls than this that nothing made good, unless it is known to have succeeded
    (`success`; where that is absent, a reward of 1 or more). 1: what cannot be had may be asked for once."""
    min_turns: Positive = 1
    """Least messages of the assistant."""
    max_turns: Positive | None = None
    """Most messages of the assistant."""
    max_characters: Positive | None = None
    """Most characters of all that is said, thought and called; declared tools left out."""
    max_tokens: Positive | None = None
    """Most tokens of the rendered run, declared tools included. Needs a tokenizer."""
    min_reward: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Least reward of a run; `success` counts as 1 or 0 where there is no reward. One without both is left out."""
    keep_best: Fraction = 1.0
    """Of the runs that pass all else, keep this fraction (rounded up), the highest scores first."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if self.max_turns is not None and self.max_turns < self.min_turns:
            raise ValueError(f"max_turns ({self.max_turns}) is less than min_turns ({self.min_turns})")
        return self

    @property
    def active(self) -> list[str]:
        """Names of the rules that are on, in the order they are asked."""
        on = {
            "reward": self.min_reward is not None,
            "turns": self.min_turns > 1 or self.max_turns is not None,
            "length": self.max_characters is not None or self.max_tokens is not None,
            "empty_final": self.empty_final,
            "malformed_calls": self.malformed_calls,
            "loops": self.loops is not None,
            "unrecovered_failures": self.unrecovered_failures is not None,
            "exact_duplicates": self.exact_duplicates,
            "near_duplicates": self.near_duplicates is not None,
            "keep_best": self.keep_best < 1,
        }
        return [name for name, is_on in on.items() if is_on]


class ScrubConfig(Section):
    """What personal data is replaced by made-up data of the same shape, the same value always by the same."""

    salt: Annotated[str, Field(min_length=8, max_length=1024)]
    """Decides the replacements. Whoever has it can try out which value a replacement came from: keep it to yourself,
    and take another for data that must not be linked with this."""
    rules: Annotated[list[RuleName], Field(min_length=1)] = list(RULE_NAMES)
    """Built-in rules."""
    presidio: list[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{1,63}$")]] = []
    """Entities that Presidio looks for besides, such as PERSON. Needs the extra `presidio` and a spaCy model."""
    presidio_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] = "en_core_web_lg"
    """spaCy model that Presidio uses; it must be installed."""
    presidio_score: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least confidence of what Presidio finds."""


class CurationConfig(Section):
    """Which runs are learnt from, and what is replaced in them."""

    filter: FilterConfig | None = FilterConfig()
    """null: every run is kept."""
    scrub: ScrubConfig | None = None
    """null: nothing is replaced."""
