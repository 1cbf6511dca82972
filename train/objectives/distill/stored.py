"""Targets that a teacher left on disk, in the place of the teacher: what a config says of them, and how a batch brings
them."""

from typing import Annotated, Any, Literal

import jax
import pydantic
from pydantic import Field

from data.rows.fields import TARGET
from maverick_jax.ops.distillation import Target
from maverick_jax.ops.sparse_targets import Mode, TopKTargets, sparse_target
from maverick_jax.settings.section import Section


class OfflineTargets(Section):
    """Targets in a folder, which `maverick data targets` makes and training reads."""

    path: Annotated[str, Field(min_length=1)]
    """The folder."""
    top_k: Annotated[int, Field(ge=1)] = 64
    """Tokens per position that are kept with their probabilities: the teacher's likeliest."""
    tail_samples: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Tokens per position drawn from the teacher's others, for mode `sampled`."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the tokens' log-probabilities on disk; all else is float32."""
    mode: Mode = "tail"
    """How training reads them. `tail`: the other tokens are one bucket, of exact mass; `renormalised`: as if there were
    no others, which is biased; `sampled`: the whole forward KL, estimated without bias from `tail_samples`."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if self.mode == "sampled" and not self.tail_samples:
            raise ValueError("mode sampled needs tail_samples, such as 8")
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that training reads of each row."""
        return tuple(
            TARGET + name for name in (TopKTargets._fields if self.mode == "sampled" else TopKTargets._fields[:5])
        )

    @property
    def header(self) -> dict[str, tuple[str, Any]]:
        """What the folder's header must say: (config key, value) by the header's key."""
        keys = ("top_k", "tail_samples", "dtype")
        return {key: (f"objective.targets.{key}", getattr(self, key)) for key in keys}

    def target(self, batch: dict[str, jax.Array]) -> Target:
        """What the teacher said of a batch."""
        return sparse_target(TopKTargets(**{name.removeprefix(TARGET): batch[name] for name in self.fields}), self.mode)
