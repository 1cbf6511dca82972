"""Fill-in-the-middle (arXiv 2207.14255): a document is cut in prefix, middle and suffix, and written so that the middle
comes last. A model that learns from it writes what belongs between two texts.

Two orders, with the tokens P, S and M before the parts (`SENTINELS`):

- PSM: `P prefix S suffix M middle`;
- SPM: `P S suffix M prefix middle`, in which the middle follows the prefix without a break.

It is done with token ids, so cuts may lie inside a word. Which documents are rearranged, and where they are cut, is
a pure function of the seed and the document's number.
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from data.order import derive, mix
from maverick_jax.errors import InputError
from maverick_jax.settings.section import Section

VERSION = 1
"""Changes when the same settings would rearrange documents otherwise."""


class FillInTheMiddle(Section):
    """Which of a source's documents are rearranged, and how."""

    rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Fraction of the documents."""
    suffix_first: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Fraction of these that have the suffix before the prefix (SPM); the others are in the order PSM."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the choice."""


class Sentinels(NamedTuple):
    """The ids before the three parts."""

    prefix: int
    suffix: int
    middle: int

    @classmethod
    def of(cls, controls: Mapping[str, int], tokenizer: str, key: str) -> "Sentinels":
        """Raises InputError, which begins with `key`, if the tokenizer with these control tokens has none of them."""
        names = [f"<|fim_{part}|>" for part in cls._fields]
        if missing := [name for name in names if name not in controls]:
            raise InputError(
                f"{key}: tokenizer {tokenizer} has no {missing[0]}; expected one that has {', '.join(names)}, such as "
                "Llama 4's or one that `maverick data tokenizer` trains"
            )
        return cls(*(controls[name] for name in names))


def rearranged(ids: np.ndarray, number: int, config: FillInTheMiddle, sentinels: Sentinels) -> np.ndarray:
    """The document `number`, ids [n], as it is trained on: as it is, or [n + 3] with its middle last. A document that
    has one of the sentinels stays as it is."""
    chosen, order, *cuts = _fractions(number, config.seed)
    if chosen >= config.rate or np.isin(ids, sentinels).any():
        return ids
    first, second = sorted(min(int(cut * (ids.size + 1)), ids.size) for cut in cuts)
    prefix, middle, suffix = ids[:first], ids[first:second], ids[second:]
    mark = lambda token: np.array([token], ids.dtype)
    P, S, M = map(mark, sentinels)
    parts = (P, S, suffix, M, prefix, middle) if order < config.suffix_first else (P, prefix, S, suffix, M, middle)
    return np.concatenate(parts)


def restored(ids: np.ndarray, sentinels: Sentinels) -> np.ndarray:
    """The document that `rearranged` made `ids` of. Raises ValueError if they are not in one of its orders."""
    if ids.size == 0 or ids[0] != sentinels.prefix:
        return ids
    places = [np.flatnonzero(ids == sentinel) for sentinel in sentinels]
    if any(found.size != 1 for found in places) or not places[0][0] < places[1][0] < places[2][0]:
        raise ValueError(f"expected one of each of the ids {tuple(sentinels)}, in this order")
    _, suffix, middle = (int(found[0]) for found in places)
    return np.concatenate([ids[1:suffix], ids[middle + 1 :], ids[suffix + 1 : middle]])


def _fractions(number: int, seed: int) -> list[float]:
    """Four numbers in [0, 1) of document `number`."""
    found = mix(np.arange(4, dtype=np.uint64), derive(seed, "fill in the middle", number))
    return ((found >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()
