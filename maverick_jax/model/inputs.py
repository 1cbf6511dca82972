"""What a forward pass reads."""

import dataclasses
from collections.abc import Mapping

import jax


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Tokens of B sequences, where they stand, and the images among them. `Maverick.logits` says what each means."""

    tokens: jax.Array
    """int32[B, T]."""
    positions: jax.Array | None = None
    """int32[B, T]; None: each document's own count."""
    segment_ids: jax.Array | None = None
    """int32[B, T]; None: one document a row."""
    pixel_values: jax.Array | None = None
    """float[N, C, S, S], N a multiple of the devices along the batch axes; None: no images."""

    @classmethod
    def of(cls, batch: Mapping[str, jax.Array]) -> "Inputs":
        """The inputs among the fields of a batch; `pixel_values` only where it holds images."""
        return cls(batch["tokens"], batch["positions"], batch["segment_ids"], batch.get("pixel_values"))


jax.tree_util.register_dataclass(Inputs)
