"""Averages of parameters among the arrays of a checkpoint: `opt_state/N/average/` and the name of what is averaged."""

import re
from collections.abc import Iterable

from maverick_jax.checkpoint.names import HEADS, MODEL

_AVERAGE = re.compile(r"opt_state/\d+/average/(.+)")


def averages_of(names: Iterable[str]) -> dict[str, str]:
    """Name of an array (`model/...` or `heads/...`) -> name of its average, for those of `names` that are averages."""
    found = {}
    for name in names:
        if match := _AVERAGE.fullmatch(name):
            averaged = match[1] if match[1].startswith(HEADS) else MODEL + match[1]
            found[averaged] = name
    return found
