"""Merge a checkpoint's low-rank adapters into the model's parameters as they are read: W + scale A B."""

import dataclasses
import math
import threading
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jax.sharding import NamedSharding, PartitionSpec
from pydantic import Field

from maverick_jax.checkpoint.names import ADAPTERS
from maverick_jax.checkpoint.readers import Reader, StoredArray, order_of
from maverick_jax.errors import InputError
from maverick_jax.settings.section import Section

RECORD = "adapters"
"""Key of a checkpoint's metadata: what `AdapterSettings` reads; null or absent where there are no adapters."""


class AdapterSettings(Section):
    """What merging needs to know of adapters beside their arrays."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Columns of A and rows of B; each routed expert has its own."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    """The product of A and B is multiplied with alpha / rank, or, with `rslora`, with alpha / sqrt(rank)."""
    rslora: bool = False
    """Whether the product is multiplied with alpha / sqrt(rank), which keeps its size at high ranks
    (arXiv 2312.03732)."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def factor_names(parameter: str) -> tuple[str, str]:
    """Names of the factors A and B of a parameter, without the prefix."""
    return f"{parameter}/a", f"{parameter}/b"


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Scale and factor shapes of a checkpoint's adapters, from its metadata; `shapes` is empty without adapters."""

    scale: float
    """`AdapterSettings.scale`."""
    shapes: Mapping[str, tuple[tuple[int, ...], str]]
    """Shape and dtype of each factor, by `factor_names`."""

    @classmethod
    def of(cls, meta: Mapping[str, Any], where: Any) -> "Adapters":
        """Read the adapters from the metadata `meta`. Raises InputError if its record and its arrays disagree, since
        the parameters alone would be another model."""
        table = {n.removeprefix(ADAPTERS): e for n, e in meta["arrays"].items() if n.startswith(ADAPTERS)}
        if meta.get(RECORD) is None and not table:
            return cls(0.0, {})
        pairs = {name.rpartition("/")[0] for name in table}
        settings = _settings(meta.get(RECORD))
        whole = bool(pairs) and table.keys() == {factor for name in pairs for factor in factor_names(name)}
        if not whole or not settings or any(table[f"{name}/a"]["shape"][-1:] != [settings.rank] for name in pairs):
            raise InputError(f"{where}: metadata: {RECORD} and the arrays {ADAPTERS}... do not match")
        return cls(settings.scale, {name: (tuple(e["shape"]), e["dtype"]) for name, e in table.items()})

    def target(self, parameters: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape, dtype and sharding of the factors of `parameters`; each axis is sharded as that of the parameter."""
        found = {}
        for name, leaf in parameters.items():
            if f"{name}/a" not in self.shapes:
                continue
            lead, middle = self._split(name, leaf.shape)
            spec = tuple(leaf.sharding.spec) + (None,) * (len(leaf.shape) - len(leaf.sharding.spec))
            for side, axes in (("a", (*spec[:middle], None)), ("b", (*spec[:lead], None, *spec[middle:]))):
                shape, dtype = self.shapes[f"{name}/{side}"]
                sharding = NamedSharding(leaf.sharding.mesh, PartitionSpec(*axes))
                found[f"{name}/{side}"] = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)
        return found

    def merge(self, name: str, base: jax.Array, factors: dict[str, jax.Array]) -> jax.Array:
        """The parameter `name` with its adapter merged into `base` (donated); removes its factors from `factors`."""
        if f"{name}/a" not in factors:
            return base
        lead, middle = self._split(name, base.shape)

        def add(base, a, b):
            change = _product(a, b, lead, middle, jnp)
            return (base.astype(jnp.float32) + self.scale * change).astype(base.dtype)

        with jax.set_mesh(base.sharding.mesh):
            return jax.jit(add, donate_argnums=0)(base, factors.pop(f"{name}/a"), factors.pop(f"{name}/b"))

    def merged_readers(self, parameters: Mapping[str, Reader], factors: Mapping[str, StoredArray]) -> dict[str, Reader]:
        """Readers of all parameters, with adapters merged. Raises InputError for an adapter of an unknown parameter."""
        found = dict(parameters)
        for name in {name.rpartition("/")[0] for name in self.shapes}:
            if name not in found:
                raise InputError(f"{ADAPTERS}{name}: the model has no such parameter")
            lead, middle = self._split(name, found[name].shape)
            pair = _Pair(factors[f"{name}/a"], factors[f"{name}/b"])
            found[name] = _Merged(found[name], pair, lead, middle, self.scale)
        return found

    def _split(self, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """The axes at which the parameter's inputs begin and end, from the shapes of its factors: A is [*lead, *in, r],
        B is [*lead, r, *out]. Raises InputError for any other shapes."""
        (a, _), (b, _) = self.shapes[f"{name}/a"], self.shapes[f"{name}/b"]
        middle = len(a) - 1
        lead = middle - (len(shape) - len(b) + 1)
        if a[:middle] != shape[:middle] or not 0 <= lead < middle or b != (*shape[:lead], a[-1], *shape[middle:]):
            raise InputError(f"{name}: factors of shapes {list(a)} and {list(b)} do not match shape {list(shape)}")
        return lead, middle


def _settings(record: Any) -> AdapterSettings | None:
    """The settings in a record, which may hold other keys too; None where it does not hold them."""
    try:
        # checkpoints of earlier versions have no key `rslora`
        return AdapterSettings(rank=record["rank"], alpha=record["alpha"], rslora=record.get("rslora", False))
    except (AttributeError, KeyError, TypeError, pydantic.ValidationError):
        return None


def _product(a, b, lead: int, middle: int, numpy):
    """float32: A [*lead, *in, r] times B [*lead, r, *out] -> [*lead, *in, *out]."""
    letters = "abcdefghij"
    every = letters[:lead], letters[lead:middle], letters[middle : middle + b.ndim - lead - 1]
    form = f"{every[0]}{every[1]}z,{every[0]}z{every[2]}->{''.join(every)}"
    return numpy.einsum(form, a.astype(numpy.float32), b.astype(numpy.float32))


class _Pair:
    """Both factors of a parameter, read completely on first use, since a checksum covers the complete array."""

    def __init__(self, a: StoredArray, b: StoredArray):
        self._stored, self._read, self._lock = (a, b), None, threading.Lock()

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:  # several threads read parts
            if self._read is None:
                whole = lambda reader: reader(tuple(slice(0, n) for n in reader.shape), np.dtype(np.float32))
                self._read = whole(self._stored[0]), whole(self._stored[1])
            return self._read

    def require_undamaged(self) -> None:
        for factor in self._stored:
            factor.require_undamaged()


@dataclasses.dataclass(frozen=True)
class _Merged:
    """Reader of a parameter with its adapter merged."""

    base: Reader
    pair: _Pair
    lead: int
    middle: int
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def order(self) -> tuple[int, ...]:
        return order_of(self.base)

    def __call__(self, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
        a, b = self.pair()
        lead, inside, outside = index[: self.lead], index[self.lead : self.middle], index[self.middle :]
        change = _product(a[(*lead, *inside)], b[(*lead, slice(None), *outside)], self.lead, self.middle, np)
        return (self.base(index, np.dtype(np.float32)) + np.float32(self.scale) * change).astype(dtype)

    def require_undamaged(self) -> None:
        for part in (self.base, self.pair):
            if (check := getattr(part, "require_undamaged", None)) is not None:
                check()
