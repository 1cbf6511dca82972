"""Which parameters are trained. The others are no part of what is differentiated or kept moments for: they cost nothing
but their own bytes, and stay as they are to the bit."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec, reshard

from maverick_jax.accounting import Parameter, parameters
from maverick_jax.checkpoint import names
from maverick_jax.config import ModelConfig
from maverick_jax.model.overlays import Factors, LowRank, SomeExperts, expert_axes
from maverick_jax.ops.expert_rows import Rows, put_rows, take_rows
from maverick_jax.param import Overlay

Role = Literal["router", "attention", "shared", "experts", "mlp", "norms", "embed", "head", "vision"]
"""A part of the model, by what it is for. `experts` are the routed ones, `shared` the shared ones, `mlp` the
feed-forward networks of dense layers, `vision` the image encoder with its adapter and projector."""

ROLES: tuple[Role, ...] = get_args(Role)
TEXT: tuple[Role, ...] = tuple(role for role in ROLES if role != "vision")

_OF_LAYER = re.compile(r"^(periods|tail)/layer_(\d+)/")
_BEGINNINGS: dict[str, Role] = {
    "vision/": "vision",
    "moe/router": "router",
    "moe/shared/": "shared",
    "moe/experts_": "experts",
    "attention/": "attention",
    "mlp/": "mlp",
    "attention_norm": "norms",
    "mlp_norm": "norms",
    "norm": "norms",
    "embed": "embed",
    "head": "head",
}

HEADS = "heads/"
"""How the names of an objective's own parameters start among the trained ones."""

ADAPTERS = "lora/"
"""How the names of low-rank adapters start among the heads: `lora/`, the parameter's name, `/a` or `/b`."""

Trained = dict[str, jax.Array]
"""Parameters by name: the model's as it names them, the heads' after `HEADS`. Of an array of experts some of which are
trained, these alone, [P, ...], by layer and number."""


def role_of(name: str) -> Role:
    """Of the parameter the model calls so, or `maverick_jax.accounting`."""
    rest = _OF_LAYER.sub("", name, count=1)
    return next(role for beginning, role in _BEGINNINGS.items() if rest.startswith(beginning))


@dataclasses.dataclass(frozen=True)
class Selection:
    """The part of a model that is trained; the objective's heads are always."""

    roles: tuple[Role, ...] = TEXT
    experts: Mapping[int, tuple[int, ...]] | None = None
    """Of the routed experts, those of each layer, both from 0; None: all."""
    adapter_scale: float | None = None
    """What the products of low-rank adapters, which are among the heads, are multiplied with; None: there are none."""

    def select(self, model, heads: dict[str, Any]) -> Trained:
        """What is trained, as it is."""
        found, params = {}, names.flatten(model, _is_parameter)
        for name, x in names.flatten(model).items():
            if (rows := self.rows(name, model.config)) is None:
                if role_of(name) in self.roles:
                    found[name] = x
            elif rows.expert.size:
                spec = model.rules(None, *expert_axes(params[name].get_metadata("axes")))
                found[name] = reshard(take_rows(_stacked(name, x), rows), spec)
        return found | {HEADS + name: x for name, x in names.flatten(heads).items()}

    def put(self, trained: Trained, model, heads: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The model and the heads with these parameters in place of their own."""

        def changed(name: str, x: jax.Array) -> jax.Array:
            rows = self.rows(name, model.config)
            if name not in trained or rows is None:
                return trained.get(name, x)
            return put_rows(_stacked(name, x), trained[name], rows).reshape(x.shape)

        own = {name.removeprefix(HEADS): x for name, x in trained.items() if name.startswith(HEADS)}
        of_model = {name: changed(name, x) for name, x in names.flatten(model).items()}
        return names.unflatten(model, of_model), names.unflatten(heads, own)

    def view(self, trained: Trained, model, heads: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """As `put`, to be differentiated by what is trained: chosen experts stand beside the array of all, or a
        gradient of all of it would be made."""
        chosen = {name: rows for name in trained if (rows := self.rows(name, model.config)) is not None}
        model, heads = self.put({name: x for name, x in trained.items() if name not in chosen}, model, heads)
        params = names.flatten(model, _is_parameter)
        over = {n: _beside(params[n], trained[n], _padded(rows, n, model.config)) for n, rows in chosen.items()}
        return self.used(_over(model, over), heads), heads

    def used(self, model, heads: dict[str, Any]):
        """The model as it is run: with its adapters, where there are such."""
        if self.adapter_scale is None:
            return model
        parts, over = names.flatten(heads), {}
        for name, param in names.flatten(model, _is_parameter).items():
            if (a := parts.get(f"{ADAPTERS}{name}/a")) is not None:
                factors = Factors.of(name, param.get_metadata("axes"))
                over[name] = LowRank(param, a, parts[f"{ADAPTERS}{name}/b"], factors, self.adapter_scale)
        return _over(model, over)

    def rows(self, name: str, config: ModelConfig) -> Rows | None:
        """Which experts of the parameter are trained, by layer and number; None: it is no array of experts, or all."""
        if self.experts is None or "experts" not in self.roles or name.startswith(HEADS) or role_of(name) != "experts":
            return None
        layers = _layers(name, config)
        pairs = [(i, e) for i, layer in enumerate(layers) for e in sorted(self.experts.get(layer, ()))]
        period, expert = np.array(pairs, np.int32).reshape(-1, 2).T
        return Rows(period, expert)

    def parameters(self, config: ModelConfig) -> list[Parameter]:
        """What is trained of such a model, to be counted."""
        found = [p for p in parameters(config) if role_of(p.name) in self.roles]
        if self.experts is None:
            return found
        chosen = sum(map(len, self.experts.values()))
        one = lambda p: Parameter(p.name, p.shape[1:], expert_axes(p.axes), chosen)
        return [one(p) if role_of(p.name) == "experts" else p for p in found]

    def frozen(self, config: ModelConfig) -> list[Role]:
        """The roles of such a model, the image encoder's apart, that are not trained, or only some experts of."""
        whole = set(self.roles) - ({"experts"} if self.experts is not None else set())
        there = {role_of(p.name) for p in parameters(config)}
        return [role for role in TEXT if role in there - whole]

    def beside(self, config: ModelConfig) -> list[Parameter]:
        """What a step makes beside the model: the chosen experts, in a row and by layer, as many in each layer of a
        stack as in its fullest."""
        if self.experts is None:
            return []
        width = len(config.period)
        stacked, fullest = config.num_periods * width, {}
        for layer, ids in self.experts.items():
            slot = (layer % width, config.num_periods) if layer < stacked else (layer, 1)
            fullest[slot] = max(fullest.get(slot, 0), len(ids))
        copies = sum(map(len, self.experts.values())) + sum(most * layers for (_, layers), most in fullest.items())
        found = [p for p in self.parameters(config) if role_of(p.name) == "experts"]
        return [dataclasses.replace(p, copies=copies) for p in found]


def _is_parameter(node: Any) -> bool:
    return isinstance(node, nnx.Param | Overlay)


def _over(model, overlays: Mapping[str, Overlay]):
    """The model with these in the places of its parameters."""
    params = names.flatten(model, _is_parameter)
    structure = jax.tree.structure(model, is_leaf=_is_parameter)
    return jax.tree.unflatten(structure, [overlays.get(name, param) for name, param in params.items()])


def _layers(name: str, config: ModelConfig) -> range:
    """The layers whose parameters are in this array."""
    match = _OF_LAYER.match(name)
    assert match is not None, name
    stacked, length = config.num_periods * len(config.period), len(config.period)
    if match[1] == "periods":
        return range(int(match[2]), stacked, length)
    return range(stacked + int(match[2]), stacked + int(match[2]) + 1)


def _stacked(name: str, x: jax.Array) -> jax.Array:
    return x if name.startswith("periods/") else x[None]


def _padded(rows: Rows, name: str, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Of each layer [L], its experts' places among `rows` and their numbers, int32[L, S]; P and E where a layer has
    fewer than others. Of a single layer, [S]."""
    layers = len(_layers(name, config))
    counts = np.bincount(rows.period, minlength=layers)
    place = np.full((layers, counts.max()), rows.expert.size, np.int32)
    number = np.full_like(place, config.num_local_experts)
    column = np.arange(rows.expert.size) - np.repeat(np.cumsum(counts) - counts, counts)
    place[rows.period, column], number[rows.period, column] = np.arange(rows.expert.size), rows.expert
    return (place, number) if name.startswith("periods/") else (place[0], number[0])


def _beside(base: nnx.Param, values: jax.Array, padded: tuple[np.ndarray, np.ndarray]) -> SomeExperts:
    place, number = padded
    spec = PartitionSpec(*(None,) * place.ndim, *tuple(jax.typeof(values).sharding.spec)[1:])
    rows = values.at[place].get(mode="fill", fill_value=0, out_sharding=spec)
    return SomeExperts(base, rows, jnp.asarray(number))
