"""How the next token is drawn."""

import dataclasses
from collections.abc import Mapping

from maverick_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from softmax(logits / temperature). First the logits change by `logit_bias` and the
    penalties, then by the temperature; then `top_k`, `top_p` and `min_p` each exclude tokens of that distribution."""

    temperature: float = 1.0
    """0 always takes the most likely token."""
    top_k: int = 0
    """Samples from the k most likely tokens; 0 samples from all."""
    top_p: float = 1.0
    """Samples from the most likely tokens whose total probability first reaches this value."""
    min_p: float = 0.0
    """Excludes tokens less likely than this times the most likely one."""
    repetition_penalty: float = 1.0
    """Logits of tokens in prompt or answer are divided by this if positive, multiplied otherwise."""
    presence_penalty: float = 0.0
    """Subtracted from logits of tokens in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time that it is in the answer."""
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Added to the logits of these token ids."""

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature: {self.temperature}; expected 0 (the most likely token) or more")
        if self.top_k < 0:
            raise InputError(f"top_k: {self.top_k}; expected 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: {self.top_p}; expected more than 0 and at most 1 (all tokens)")
        if not 0 <= self.min_p < 1:
            raise InputError(f"min_p: {self.min_p}; expected 0 (all tokens) to less than 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise InputError(f"repetition_penalty: {self.repetition_penalty}; expected more than 0 (1: none)")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -float("inf") < getattr(self, name) < float("inf"):
                raise InputError(f"{name}: {getattr(self, name)}; expected a finite number")

    def extras(self) -> list[str]:
        """Names of the fields with values that change logits by what was written, or by token id."""
        names = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")
        return [name for name in names if getattr(self, name) != getattr(PLAIN, name)]


PLAIN = Sampling()
"""Draws from the model's own distribution."""
