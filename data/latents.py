"""How latent thoughts take the place of written steps in training data (Coconut, arXiv 2412.06769).

Stage k of the curriculum replaces the first k steps of every thought. Stages follow each other as stages of a run, each
with its own number. Some documents have the form of an earlier stage, so that what a latent stands for stays learned
and fewer can be served, and some have none, so that the model also works without them.
"""

from typing import Annotated

import numpy as np
import pydantic
from pydantic import Field

from data.order import mix
from maverick_jax.settings.section import Section

Share = Annotated[float, Field(ge=0, le=1)]


class LatentSteps(Section):
    """Which steps of thoughts latents take the place of."""

    replaced: Annotated[int, Field(ge=0)] = 0
    """Number of first steps of each thought that latents replace; a thought with fewer steps is replaced whole."""
    per_step: Annotated[int, Field(ge=1)] = 1
    """Latents for each replaced step."""
    mix: Share = 0.0
    """Share of documents in which any number of steps, drawn evenly from none to `replaced`, is replaced instead."""
    off: Share = 0.0
    """Share of documents without latents."""

    @pydantic.model_validator(mode="after")
    def _leaves_some(self):
        if self.mix + self.off > 1:
            raise ValueError(f"mix ({self.mix:g}) and off ({self.off:g}) are more than all documents")
        return self

    def of_documents(self, numbers: np.ndarray, steps: int, seed: int) -> np.ndarray:
        """int64[n]: how many of `steps` steps are replaced in documents `numbers`, a pure function of these, of the
        section and of `seed`."""
        draw, most = lambda purpose: mix(numbers, seed + purpose).astype(np.float64) / 2**64, min(self.replaced, steps)
        chosen, any_number = draw(0), np.minimum((draw(1) * (most + 1)).astype(np.int64), most)
        stage = np.full(numbers.size, most, np.int64)
        mixed = np.where(chosen < self.mix, any_number, stage)
        return np.where(chosen >= 1 - self.off, 0, mixed)
