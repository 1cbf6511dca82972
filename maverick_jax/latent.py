"""The config of latent thoughts: places in a turn whose input is the model's own last hidden state, not a token.

The model thinks there without writing (Coconut, arXiv 2412.06769). `maverick_jax.model.latent` computes them.
"""

from typing import Annotated

import pydantic
from pydantic import Field

from maverick_jax.settings.section import Section

Natural = Annotated[int, Field(ge=0)]


class LatentConfig(Section):
    """Latent thoughts: which token holds the place of one, and how a whole row is computed."""

    token_id: Natural
    """Id of the control token at the places of latents, such as `<|reasoning_reserved_special_token_0|>`. Its embedding
    is read in the first pass alone."""
    passes: Natural = 4
    """Passes that compute the latents of a row, before the pass whose output counts. n passes are exact for segments
    of up to n latents, counted over all of a segment's spans (Jacobi iteration, arXiv 2506.18582); 0 fits rows without
    latents, such as those of a stage of text, and costs nothing."""
    exact: bool = True
    """Whether a batch with more latents in a segment than `passes` is refused. false: it is trained on with latents
    that are not converged, and the log says so."""
    gradient: Annotated[int, Field(ge=1)] | None = None
    """Number of last passes that the gradient goes through, which bounds the memory of training; null: all."""

    @pydantic.model_validator(mode="after")
    def _has_those_passes(self):
        if self.gradient is not None and self.gradient > self.passes:
            raise ValueError(f"gradient ({self.gradient}) exceeds passes ({self.passes}); expected null or fewer")
        return self

    @property
    def passes_with_gradient(self) -> int:
        return self.passes if self.gradient is None else self.gradient
