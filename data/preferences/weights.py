"""Weights of tokens in the log-probabilities of pairs."""

import numpy as np
import pydantic

from data.trajectories.kinds import CONTEXT, TokenKind
from data.trajectories.weights import KindWeights, Weight

NEVER = np.isin(np.arange(len(TokenKind)), [*CONTEXT, TokenKind.DOCUMENT])
"""bool[kinds]: kinds that never count in a pair, because the assistant does not write them."""


class PairWeights(KindWeights):
    """Weight of each token kind (`TokenKind`) in the log-probability of a side. What the assistant does not write
    never counts."""

    failed_action: Weight = 1.0
    """Calls whose result is an error."""
    recovery: Weight = 1.0
    """The next successful call with the same intent as a failed one."""
    control: Weight = 0.0
    """Control tokens that the assistant generates, including stop tokens. Both sides have them, so that they would pull
    both ways (Llama 3, arXiv 2407.21783)."""
    document: Weight = 0.0
    """Texts that are not trajectories: pairs have none."""

    @pydantic.model_validator(mode="after")
    def _weighs_only_what_is_written(self):
        for kind in TokenKind:
            name = kind.name.lower()
            if NEVER[kind] and (value := getattr(self, name, 0.0)):
                raise ValueError(f"{name}: {value:g}: the assistant does not write these tokens; expected 0")
        return self
