"""Config sections of curation: filter rules for trajectories, and replacement of personal data."""

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
    """Rules that drop trajectories. A rule that is null, false or 1.0 is off."""

    exact_duplicates: bool = True
    """Drop a trajectory with the same messages, calls and tools as an earlier one."""
    near_duplicates: Fraction | None = None
    """Drop a trajectory whose word shingles (without system message and tools) have at least this Jaccard similarity,
    estimated by MinHash, to the word shingles of an earlier one. Needs the extra `dedup`."""
    shingle_words: Positive = 5
    """Number of words in a shingle."""
    loops: Annotated[int, Field(ge=2)] | None = 3
    """Drop a trajectory that repeats the same call, or sequence of up to four calls, with the same results this many
    times in a row."""
    malformed_calls: bool = True
    """Drop a trajectory with a call that does not match the declaration of its tool, unless the call failed (see
    `unrecovered_failures`)."""
    empty_final: bool = True
    """Drop a trajectory that ends in calls without results, or whose last assistant message has no text and no call."""
    unrecovered_failures: Natural | None = 1
    """Drop a trajectory with more failed calls without a recovery than this, unless it is known to have succeeded
    (`success`, or if that is absent, a reward of 1 or more). The default tolerates one request for something that is
    not available."""
    min_turns: Positive = 1
    """Least number of assistant messages."""
    max_turns: Positive | None = None
    """Largest number of assistant messages."""
    max_characters: Positive | None = None
    """Largest number of characters of texts, thoughts and calls, without declared tools."""
    max_tokens: Positive | None = None
    """Largest number of tokens of the rendered trajectory, with declared tools. Needs a tokenizer."""
    min_reward: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Least reward; without a reward, `success` counts as 1 or 0. A trajectory with neither is dropped."""
    keep_best: Fraction = 1.0
    """Fraction of the trajectories that pass all other rules to keep (rounded up), those with the highest scores."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if self.max_turns is not None and self.max_turns < self.min_turns:
            raise ValueError(f"max_turns ({self.max_turns}) is less than min_turns ({self.min_turns})")
        return self

    @property
    def active(self) -> list[str]:
        """Names of the active rules, in the order in which they are applied."""
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
    """Replacement of personal data by invented data of the same shape; equal values get equal replacements."""

    salt: Annotated[str, Field(min_length=8, max_length=1024)]
    """Secret that determines the replacements. Anybody who knows it can test which value gave a replacement, so keep it
    private, and use another salt for data that must not be linked with this data."""
    rules: Annotated[list[RuleName], Field(min_length=1)] = list(RULE_NAMES)
    """Built-in rules."""
    presidio: list[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{1,63}$")]] = []
    """Additional entities found by Presidio, such as PERSON. Needs the extra `presidio` and a spaCy model."""
    presidio_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] = "en_core_web_lg"
    """spaCy model that Presidio uses; it must be installed."""
    presidio_score: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least confidence of an entity found by Presidio."""


class CurationConfig(Section):
    """Which trajectories are kept, and which personal data is replaced in them."""

    filter: FilterConfig | None = FilterConfig()
    """Filter rules; null keeps every trajectory."""
    scrub: ScrubConfig | None = None
    """Replacement of personal data; null replaces nothing."""
