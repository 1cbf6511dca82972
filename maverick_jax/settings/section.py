"""Base of all config sections: frozen; unknown keys are errors."""

import difflib
from collections.abc import Iterable

import pydantic


class Section(pydantic.BaseModel):
    """A part of a config. Unknown keys are errors; values cannot change after validation."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", validate_default=True, strict=True, use_attribute_docstrings=True
    )


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean X?` for the most similar of `choices`, or an empty string if none is similar."""
    near = difflib.get_close_matches(str(word), [str(c) for c in choices], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
