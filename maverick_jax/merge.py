"""Average the parameters of models, a few blocks at a time."""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from maverick_jax.checkpoint.readers import Reader, order_of
from maverick_jax.errors import InputError
from maverick_jax.files import require_new
from maverick_jax.model_source import ModelSource, network_of, open_source
from maverick_jax.pretrained import write_run
from maverick_jax.text import find_tokenizer, load_tokenizer, same_tokens


def merge(
    models: Sequence[str | pathlib.Path], out: str | pathlib.Path, weights: Sequence[float] | None = None
) -> None:
    """Write the weighted average of `models` to a new run directory `out`, as checkpoint 0, with the tokenizer, the
    public settings and the dtypes of the first.

    models: two or more, as in `load_pretrained`, of one network. weights: one per model, divided by their sum; None:
    equal. Negative ones extrapolate. Sums are float64 and rounded once, so that equal values stay as they are. Adapters
    are merged into their model first. An interrupted merge is resumed by the same call.
    Raises InputError for models of different networks or tokenizers, weights that cannot be used, a damaged model, and
    an `out` that exists.
    """
    require_new(pathlib.Path(out))
    shares = _shares(models, weights)
    sources = [open_source(model) for model in models]
    first = sources[0]
    for model, source in zip(models[1:], sources[1:], strict=True):
        _require_same_network(models[0], first, model, source)
        _require_same_tokenizer(models[0], model)
    for source in sources:
        source.require_undamaged()
    readers = [source.readers() for source in sources]
    averages = {name: Average(tuple(r[name] for r in readers), shares) for name in readers[0]}
    identity = json.dumps([[source.identity() for source in sources], shares])
    write_run(averages, first.config, out, identity=hashlib.sha256(identity.encode()).hexdigest(), like=models[0])


@dataclasses.dataclass(frozen=True)
class Average:
    """Reader of the weighted sum of parameters of one shape."""

    readers: tuple[Reader, ...]
    shares: tuple[float, ...]
    """One weight per reader; their sum is 1."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.readers[0].shape

    @property
    def order(self) -> tuple[int, ...]:
        return order_of(self.readers[0])

    def __call__(self, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
        parts = (w * reader(index, np.dtype(np.float64)) for w, reader in zip(self.shares, self.readers, strict=True))
        return functools.reduce(np.add, parts).astype(dtype)


def _shares(models: Sequence, weights: Sequence[float] | None) -> tuple[float, ...]:
    if len(models) < 2:
        raise InputError(f"maverick merge: {len(models)} model(s); expected two or more, and OUT")
    weights = [1.0] * len(models) if weights is None else weights
    if len(weights) != len(models):
        raise InputError(f"weights: {len(weights)} for {len(models)} models; expected one per model")
    total = math.fsum(weights)
    if not all(map(math.isfinite, weights)) or total <= 0:
        raise InputError(f"weights: {', '.join(map(str, weights))}; expected finite numbers with a sum above 0")
    return tuple(weight / total for weight in weights)


def _require_same_network(path, first: ModelSource, other_path, other: ModelSource) -> None:
    ours, theirs = network_of(first.config), network_of(other.config)
    for key in ours:
        if ours[key] != theirs[key]:
            values = f"{theirs[key]}; {path} has {ours[key]}"
            raise InputError(f"{other_path}: model.{key} is {values}; expected models of one network")


def _require_same_tokenizer(path, other) -> None:
    """A model without a tokenizer fits any."""
    if find_tokenizer(pathlib.Path(path)) is None or find_tokenizer(pathlib.Path(other)) is None:
        return
    if not same_tokens(load_tokenizer(path), load_tokenizer(other)):
        raise InputError(f"{other}: has another tokenizer than {path}; expected models with the same token ids")
