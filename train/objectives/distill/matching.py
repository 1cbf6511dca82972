"""Distillation from a teacher's internals: outputs of chosen layers, and distributions of chosen routers."""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jax.sharding import reshard
from pydantic import Field

from maverick_jax.config import ModelConfig
from maverick_jax.model.layers import Taps
from maverick_jax.model.transformer import Tapped
from maverick_jax.ops.linear import linear
from maverick_jax.param import stored
from maverick_jax.settings.section import Section
from maverick_jax.sharding import ShardingRules
from train.objectives.base import Findings, Head

Natural = Annotated[int, Field(ge=0)]
Pair = Annotated[tuple[Natural, Natural], Field(strict=False)]  # configs write a list
_LEAST_MEAN_SQUARE = 1e-12
"""Added to the mean square of a vector before dividing by it; it matters only for a vector of zeros."""


def _once(pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    if twice := [list(pair) for i, pair in enumerate(pairs) if pair in pairs[:i]]:
        raise ValueError(f"{twice[0]} is given twice")
    return pairs


Pairs = Annotated[tuple[Pair, ...], Field(min_length=1, strict=False), pydantic.AfterValidator(_once)]


class HiddenMatching(Section):
    """`objective.hidden`: trains the student's residual stream to match the teacher's."""

    kind: Literal["cosine", "l2"] = "cosine"
    """Distance per token between the student's vector s and the teacher's t. `cosine`: 1 - cos(s, t), which ignores
    lengths; `l2`: |s - t|^2 / |t|^2."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Weight, in the loss, of the mean over tokens and pairs of layers."""
    layers: Pairs
    """Pairs [student's layer, teacher's layer], counted from 0, whose outputs are compared."""
    projection: bool = False
    """Whether the student's vector is first multiplied by a matrix that is trained with the model, one per pair; needed
    if the models' widths differ."""

    def distance(self, s: jax.Array, t: jax.Array) -> jax.Array:
        """Distance per token, float32[B, T], between vectors [B, T, D]."""
        s, t = s.astype(jnp.float32), t.astype(jnp.float32)
        mean = lambda x: jnp.mean(x, axis=-1)
        square = lambda x: mean(x * x) + _LEAST_MEAN_SQUARE
        if self.kind == "l2":
            return mean((s - t) ** 2) / square(t)
        return 1 - mean(s * t) * jax.lax.rsqrt(square(s)) * jax.lax.rsqrt(square(t))


class RouterMatching(Section):
    """`objective.router`: trains the student's routers to match the teacher's. Expert k of the student corresponds to
    expert k of the teacher."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Weight, in the loss, of the mean over tokens and pairs of layers."""
    layers: Pairs | None = None
    """Pairs [student's layer, teacher's layer], counted from 0; all must be mixtures of experts. null: all mixtures of
    experts of both models, in order."""

    def pairs(self, student: ModelConfig, teacher: ModelConfig) -> tuple[Pair, ...]:
        return self.layers or tuple(zip(student.moe_layers, teacher.moe_layers, strict=True))


def router_divergence(s: jax.Array, t: jax.Array) -> jax.Array:
    """KL(softmax(t) | softmax(s)) per token, in nats, float32[B, T], for router logits float32[B, T, E]."""
    log_s, log_t = jax.nn.log_softmax(s), jax.nn.log_softmax(t)
    return jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1)


@dataclasses.dataclass(frozen=True)
class Matching:
    """The internals of two models that are compared."""

    hidden: HiddenMatching | None
    router: RouterMatching | None

    def taps(self, student: ModelConfig, teacher: ModelConfig) -> tuple[Taps, Taps]:
        """The compared layers of the student and of the teacher, in the order of the pairs."""
        hidden = self.hidden.layers if self.hidden else ()
        router = self.router.pairs(student, teacher) if self.router else ()
        first, second = (Taps(tuple(p[i] for p in hidden), tuple(p[i] for p in router)) for i in (0, 1))
        return first, second

    def heads(self, student: ModelConfig, teacher: ModelConfig) -> tuple[Head, ...]:
        """The projections, each [student's D, teacher's D]."""
        if self.hidden is None or not self.hidden.projection:
            return ()
        shape, std = (student.hidden_size, teacher.hidden_size), student.hidden_size**-0.5
        return tuple(Head(_projection(pair), shape, ("embed", None), std) for pair in self.hidden.layers)

    def distances(
        self,
        student: Tapped,
        teacher: Tapped,
        heads: dict[str, nnx.Param],
        weights: jax.Array,
        rules: ShardingRules,
    ) -> dict[str, jax.Array]:
        """Distances by metric name, float32[]: sums over tokens, weighted by `weights` [B, T], of means over pairs of
        layers. Only the student and the heads get gradients."""
        spec = rules("batch", "length", None)
        whole = lambda arrays: [reshard(x, spec) for x in arrays]
        theirs = lambda arrays: jax.lax.stop_gradient(whole(arrays))
        total = lambda distances: jnp.sum(weights * sum(distances[1:], distances[0])) / len(distances)
        found = {}
        if self.hidden:
            vectors = whole(student.layers)
            if self.hidden.projection:
                project = lambda x, pair: linear(x, *stored(heads[_projection(pair)], rules, x.dtype))
                vectors = [project(x, pair) for x, pair in zip(vectors, self.hidden.layers, strict=True)]
            found["hidden_loss"] = total([*map(self.hidden.distance, vectors, theirs(teacher.layers))])
        if self.router:
            found["router_divergence"] = total(
                [*map(router_divergence, whole(student.routers), theirs(teacher.routers))]
            )
        return found

    def weights(self) -> dict[str, float]:
        """Weight of each distance in the loss, by metric name."""
        named = {"hidden_loss": self.hidden, "router_divergence": self.router}
        return {name: section.weight for name, section in named.items() if section}

    def check(self, student: ModelConfig, teacher: ModelConfig) -> Findings:
        """Reasons why the two models cannot be compared; empty if they can."""
        found = []
        if self.hidden:
            found += _out_of_range("hidden", self.hidden.layers, student, teacher)
            widths = student.hidden_size, teacher.hidden_size
            if not self.hidden.projection and widths[0] != widths[1]:
                why = f"the student is {widths[0]} wide, the teacher {widths[1]}: set it to true to train"
                found.append(("objective.hidden.projection", f"{why} a projection"))
        return found + (self._check_router(self.router, student, teacher) if self.router else [])

    def _check_router(self, router: RouterMatching, student: ModelConfig, teacher: ModelConfig) -> Findings:
        experts, routed = (
            (student.num_local_experts, teacher.num_local_experts),
            (student.moe_layers, teacher.moe_layers),
        )
        if not all(routed):
            who = "student" if not routed[0] else "teacher"
            return [("objective.router", f"the {who} has no mixture of experts; expected null")]
        found = []
        if experts[0] != experts[1]:
            why = f"the student has {experts[0]} experts, the teacher {experts[1]}; expected equal numbers"
            found.append(("objective.router", why))
        if router.layers is None:
            if len(routed[0]) != len(routed[1]):
                named = [_listed(layers) for layers in routed]
                why = f"mixtures of experts are layers {named[0]} of the student, layers {named[1]} of the teacher"
                wanted = "expected a list of the [student's, teacher's] layers to compare"
                found.append(("objective.router.layers", f"{why}; {wanted}"))
            return found
        found += _out_of_range("router", router.layers, student, teacher)
        for who, i in (("student", 0), ("teacher", 1)):
            dense = sorted({pair[i] for pair in router.layers} - set(routed[i]))
            dense = [layer for layer in dense if layer < (student, teacher)[i].num_hidden_layers]
            if dense:
                why = f"layer {dense[0]} of the {who} is dense; its mixtures of experts are layers {_listed(routed[i])}"
                found.append(("objective.router.layers", why))
        return found


def _projection(pair: Pair) -> str:
    return f"hidden_{pair[0]}_{pair[1]}"


def _out_of_range(key: str, pairs: tuple[Pair, ...], student: ModelConfig, teacher: ModelConfig) -> Findings:
    found = []
    for who, model, layers in zip(("student", "teacher"), (student, teacher), zip(*pairs, strict=True), strict=True):
        if max(layers) >= (depth := model.num_hidden_layers):
            why = f"the {who} has no layer {max(layers)}; its layers are 0 to {depth - 1}"
            found.append((f"objective.{key}.layers", why))
    return found


def _listed(layers: tuple[int, ...]) -> str:
    few = ", ".join(map(str, layers[:6]))
    return few if len(layers) <= 6 else f"{few}, ..."
