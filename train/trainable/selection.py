"""Selects the parameters that are trained. The others get no gradient and no optimizer state, and do not change by a
bit."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec, reshard

from maverick_jax import parameters
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.adapters import factor_names
from maverick_jax.checkpoint.names import ADAPTERS, HEADS
from maverick_jax.config import ModelConfig
from maverick_jax.model.overlays import Dropout, ExpertSubset, Factors, LowRank, expert_axes
from maverick_jax.ops.expert_rows import ExpertRows, put_rows, take_rows
from maverick_jax.param import Overlay
from maverick_jax.parameters import TEXT_ROLES, Parameter, Role

Trained = dict[str, jax.Array]
"""Trained parameters by name; names of heads begin with `HEADS`. If only some experts of an array are trained, the
entry contains only those, [P, ...], ordered by layer and expert."""


ADAPTER_NOISE = "adapter_noise"
"""Field of a microbatch: data of the random key of its adapters' dropout, uint32[2]."""
_DROPOUT = 0x64726F70
"""Folded into the run's seed, so that the dropout's random numbers are its own."""


@dataclasses.dataclass(frozen=True)
class AdapterUse:
    """How low-rank adapters, which are among the heads, take part in the model."""

    scale: float
    """What the products of their factors are multiplied with."""
    dropout: float = 0.0
    """Share of their inputs that a training step sets to zero."""
    seed: int = 0
    """Of the dropout."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """The part of a model that is trained. Objective heads are always trained."""

    roles: tuple[Role, ...] = TEXT_ROLES
    experts: Mapping[int, tuple[int, ...]] | None = None
    """Layer -> its trained routed experts, both counted from 0; None: all."""
    adapters: AdapterUse | None = None
    """How low-rank adapters, which are among the heads, are used; None: no adapters."""

    def select(self, model, heads: dict[str, Any]) -> Trained:
        """The trained parameters, with their current values."""
        found, params = {}, names.flatten(model, _is_parameter)
        declared = parameters.by_name(model.config)
        for name, x in names.flatten(model).items():
            if (rows := self.rows(declared[name], model.config)) is None:
                if declared[name].role in self.roles:
                    found[name] = x
            elif rows.expert.size:
                spec = model.rules(None, *expert_axes(params[name].get_metadata("axes")))
                found[name] = reshard(take_rows(_stacked(declared[name], x), rows), spec)
        return found | {HEADS + name: x for name, x in names.flatten(heads).items()}

    def put(self, trained: Trained, model, heads: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The model and the heads with `trained` in place of their parameters."""
        declared = parameters.by_name(model.config)

        def changed(name: str, x: jax.Array) -> jax.Array:
            rows = self.rows(declared[name], model.config)
            if name not in trained or rows is None:
                return trained.get(name, x)
            return put_rows(_stacked(declared[name], x), trained[name], rows).reshape(x.shape)

        own = {name.removeprefix(HEADS): x for name, x in trained.items() if name.startswith(HEADS)}
        of_model = {name: changed(name, x) for name, x in names.flatten(model).items()}
        return names.unflatten(model, of_model), names.unflatten(heads, own)

    def noise(self, step: jax.Array, microbatches: int) -> dict[str, jax.Array]:
        """Fields that training adds to a batch: random keys for dropout, uint32[A, 2], which depend on the seed and the
        step; none without dropout."""
        if self.adapters is None or not self.adapters.dropout:
            return {}
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.adapters.seed), _DROPOUT), step)
        return {ADAPTER_NOISE: jax.random.key_data(jax.random.split(key, microbatches))}

    def with_overlays(
        self, trained: Trained, model, heads: dict[str, Any], noise: jax.Array | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Like `put`, for differentiation with respect to the trained parameters. Chosen experts become an overlay on
        the array of all experts, since otherwise a gradient of the whole array would be computed. Adapters are overlays
        too, with dropout if there is `noise`, of one microbatch."""
        declared = {p.name: p for p in parameters.of_model(model.config) if p.name in trained}
        chosen = {name: rows for name, p in declared.items() if (rows := self.rows(p, model.config)) is not None}
        model, heads = self.put({name: x for name, x in trained.items() if name not in chosen}, model, heads)
        params = names.flatten(model, _is_parameter)
        over = {
            n: _subset(params[n], trained[n], _padded(rows, declared[n], model.config)) for n, rows in chosen.items()
        }
        return self.with_adapters(_over(model, over), heads, noise), heads

    def with_adapters(self, model, heads: dict[str, Any], noise: jax.Array | None = None):
        """The model with its adapters, if it has any; with dropout if there is `noise`."""
        if self.adapters is None:
            return model
        parts, over = {HEADS + name: x for name, x in names.flatten(heads).items()}, {}
        declared = parameters.by_name(model.config)
        for name, param in names.flatten(model, _is_parameter).items():
            a, b = (parts.get(ADAPTERS + factor) for factor in factor_names(name))
            if a is not None and b is not None:
                dropout = None if noise is None else _dropout(self.adapters.dropout, noise, declared[name])
                over[name] = LowRank(param, a, b, Factors.of(declared[name]), self.adapters.scale, dropout)
        return _over(model, over)

    def rows(self, declared: Parameter, config: ModelConfig) -> ExpertRows | None:
        """The trained experts of a parameter, by layer and expert; None if all are trained or it is not an array of
        experts."""
        if self.experts is None or "experts" not in self.roles or declared.role != "experts":
            return None
        layers = _layers(declared.name, config)
        pairs = [(i, e) for i, layer in enumerate(layers) for e in sorted(self.experts.get(layer, ()))]
        period, expert = np.array(pairs, np.int32).reshape(-1, 2).T
        return ExpertRows(period, expert)

    def parameters(self, config: ModelConfig) -> list[Parameter]:
        """Declarations of the trained parameters, for counting. If only some experts of an array are trained, its entry
        contains only those, along one axis."""
        found = [p for p in parameters.of_model(config) if p.role in self.roles]
        if self.experts is None:
            return found
        return [self._row(p, config) if p.role == "experts" else p for p in found]

    def _row(self, experts: Parameter, config: ModelConfig) -> Parameter:
        """The declaration of the chosen experts of an array of experts, [P, ...]."""
        assert self.experts is not None
        chosen = sum(len(self.experts.get(layer, ())) for layer in _layers(experts.name, config))
        axes = expert_axes(experts.axes)
        return dataclasses.replace(experts, shape=experts.shape[1:], axes=axes, stacked=chosen)

    def frozen(self, config: ModelConfig) -> list[Role]:
        """The roles in the model, except the image encoder, whose parameters are not all trained."""
        whole = set(self.roles) - ({"experts"} if self.experts is not None else set())
        there = parameters.roles_of(config)
        return [role for role in TEXT_ROLES if role in there - whole]

    def extra_buffers(self, config: ModelConfig) -> list[Parameter]:
        """Arrays in memory during a step in addition to the model and the state of the trained parameters: the chosen
        experts, along one axis and again by layer. The latter is padded to the layer with the most chosen experts."""
        if self.experts is None:
            return []
        found = []
        for p in [p for p in self.parameters(config) if p.role == "experts"]:
            layers = _layers(p.name, config)
            fullest = max(len(self.experts.get(layer, ())) for layer in layers)
            found.append(dataclasses.replace(p, stacked=(p.stacked or 0) + fullest * len(layers)))
        return found


def _is_parameter(node: Any) -> bool:
    return isinstance(node, nnx.Param | Overlay)


def _over(model, overlays: Mapping[str, Overlay]):
    """The model with `overlays` in place of its parameters of those names."""
    params = names.flatten(model, _is_parameter)
    structure = jax.tree.structure(model, is_leaf=_is_parameter)
    return jax.tree.unflatten(structure, [overlays.get(name, param) for name, param in params.items()])


def _dropout(rate: float, noise: jax.Array, declared: Parameter) -> Dropout:
    """Every matrix of every layer drops other inputs."""
    key = jax.random.fold_in(jax.random.wrap_key_data(noise), zlib.crc32(declared.name.encode()))
    keys = key if declared.stacked is None else jax.random.split(key, declared.stacked)
    return Dropout(jax.random.key_data(keys), rate)


def _layers(name: str, config: ModelConfig) -> range:
    """The layers whose parameters are in the array `name`."""
    found = config.stack.find(name)
    assert found is not None, name
    return found[0].layers


def _stacked(declared: Parameter, x: jax.Array) -> jax.Array:
    return x if declared.stacked else x[None]


def _padded(rows: ExpertRows, declared: Parameter, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """For each layer, the places of its experts in `rows` and their indices, both int32[L, S], or [S] for a single
    layer. P and E mark padding in layers with fewer experts."""
    layers = len(_layers(declared.name, config))
    counts = np.bincount(rows.period, minlength=layers)
    place = np.full((layers, counts.max()), rows.expert.size, np.int32)
    number = np.full_like(place, config.num_local_experts)
    column = np.arange(rows.expert.size) - np.repeat(np.cumsum(counts) - counts, counts)
    place[rows.period, column], number[rows.period, column] = np.arange(rows.expert.size), rows.expert
    return (place, number) if declared.stacked else (place[0], number[0])


def _subset(base: nnx.Param, values: jax.Array, padded: tuple[np.ndarray, np.ndarray]) -> ExpertSubset:
    place, number = padded
    spec = PartitionSpec(*(None,) * place.ndim, *tuple(jax.typeof(values).sharding.spec)[1:])
    rows = values.at[place].get(mode="fill", fill_value=0, out_sharding=spec)
    return ExpertSubset(base, rows, jnp.asarray(number))
