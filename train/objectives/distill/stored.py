"""Stored targets, which replace a live teacher: their config section, and their fields in a batch."""

from typing import Annotated, Any, Literal

import jax
import pydantic
from pydantic import Field

from data.rows.fields import TARGET
from maverick_jax.ops.distillation import SoftTarget
from maverick_jax.ops.sparse_targets import Mode, TopKTargets, sparse_target
from maverick_jax.settings.section import Section


class OfflineTargets(Section):
    """A folder of stored targets, which `maverick data targets` writes and training reads."""

    path: Annotated[str, Field(min_length=1)]
    """The folder."""
    top_k: Annotated[int, Field(ge=1)] = 64
    """Number of the teacher's most likely tokens that are stored per position, with their probabilities."""
    tail_samples: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Number of tokens per position drawn from the teacher's other tokens, for mode `sampled`."""
    dtype: Literal["float16", "float32"] = "float16"
    """Dtype of the tokens' log-probabilities on disk; all other numbers are float32."""
    mode: Mode = "tail"
    """How training uses the targets. `tail`: all other tokens form one bucket with their exact total probability;
    `renormalised`: the other tokens are ignored, which is biased; `sampled`: an unbiased estimate of the whole forward
    KL from `tail_samples`."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if self.mode == "sampled" and not self.tail_samples:
            raise ValueError("mode sampled needs tail_samples, such as 8")
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that training reads."""
        return tuple(
            TARGET + name for name in (TopKTargets._fields if self.mode == "sampled" else TopKTargets._fields[:5])
        )

    @property
    def header(self) -> dict[str, tuple[str, Any]]:
        """Required entries of the folder's header: header key -> (config key, value)."""
        keys = ("top_k", "tail_samples", "dtype")
        return {key: (f"objective.targets.{key}", getattr(self, key)) for key in keys}

    def target(self, batch: dict[str, jax.Array]) -> SoftTarget:
        """The stored target of a batch."""
        return sparse_target(TopKTargets(**{name.removeprefix(TARGET): batch[name] for name in self.fields}), self.mode)
