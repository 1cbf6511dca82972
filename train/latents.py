"""Checks of latent thoughts that need the data: which token holds their places, and how many a segment has."""

import logging

import numpy as np

from data.rows.fields import Row
from maverick_jax.errors import InputError
from maverick_jax.latent import LatentConfig
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat.reply import LATENT
from train.config import RunConfig

_log = logging.getLogger(__name__)


def check_latent_token(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Raises InputError if the model takes another token than the data for the place of a latent."""
    if config.model.latent is None:
        return
    if (found := tokenizer.controls.get(LATENT)) != (given := config.model.latent.token_id):
        expected = f"a tokenizer with {LATENT}" if found is None else f"{found}, the id of {LATENT} in data.tokenizer"
        raise InputError(f"model.latent.token_id: {given}; expected {expected} ({config.data.tokenizer})")


class LatentCheck:
    """Counts the latents of batches, for the model at `key`."""

    def __init__(self, latent: LatentConfig | None, key: str = "model"):
        self._latent, self._key, self._logged = latent, key, False

    def __call__(self, rows: Row) -> None:
        """Raises InputError if a segment of `rows` [n, T] has more latents than the model computes exactly, and the
        config wants exact ones; otherwise logs it, once."""
        if self._latent is None:
            return
        most = latents_of_segments(rows, self._latent.token_id).max(axis=1, initial=0)
        inexact = most > self._latent.passes
        if not inexact.any():
            return
        row = int(most.argmax())
        said = f"row {row} of a batch has a segment with {most[row]} latents, counted over all of its spans"
        if self._latent.exact:
            raise InputError(f"{self._key}.latent.passes: {self._latent.passes}, and {said}; expected at least "
                             f"{most[row]}, or {self._key}.latent.exact: false")  # fmt: skip
        if not self._logged:
            self._logged = True
            _log.warning("latents are inexact: %s.latent.passes is %d, and %s, as have %d of %d rows; this is "
                         "logged once", self._key, self._latent.passes, said, inexact.sum(), inexact.size)  # fmt: skip


def latents_of_segments(rows: Row, token: int) -> np.ndarray:
    """int64[n, T + 1]: the number of places with `token` in each segment of rows [n, T], by the segment's number."""
    n, T = rows["tokens"].shape
    place = np.arange(n)[:, None] * (T + 1) + rows["segment_ids"]
    found = place[(rows["tokens"] == token) & (rows["segment_ids"] > 0)]
    return np.bincount(found, minlength=n * (T + 1)).reshape(n, T + 1)
