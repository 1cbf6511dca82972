"""What objectives that predict the next token have in common.

Everything an objective returns is a sum over tokens, or is divided by a total of the whole batch, so that microbatches
add up to exactly the large batch.
"""

import abc
import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field

from maverick_jax.config import ModelConfig
from maverick_jax.model.layers import Taps
from maverick_jax.model.moe import RouterStats
from maverick_jax.model.transformer import NO_TAPS, Maverick, Tapped
from maverick_jax.ops.cross_entropy import CrossEntropy, cross_entropy
from maverick_jax.settings.section import Section
from train.evaluation.decisions import Written
from train.objectives.distill.stored import OfflineTargets
from train.rollouts.on_policy import OnPolicy

Batch = dict[str, jax.Array]
Sums = dict[str, Any]
State = dict[str, jax.Array]
"""What an objective carries from step to step: scalars by name, saved with the train state."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What an objective may look at beside the model and the batch."""

    step: jax.Array
    """int32[]: updates done."""
    state: State
    references: dict[str, Maverick]
    """Frozen models, by the names that `NextToken.references` gives them."""
    heads: dict[str, nnx.Param] = dataclasses.field(default_factory=dict)
    """Trained beside the model, by the names that `NextToken.heads` gives them."""


jax.tree_util.register_dataclass(Context)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A frozen model that an objective looks at."""

    path: str
    """As for `load_pretrained`."""
    dtype: str = "keep"
    """Of its parameters: keep (as they are stored), float32 or bfloat16."""
    rules: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What its layout has otherwise than the run's sharding table."""
    made_by: str | None = None
    """The run config that makes it where it is not there yet."""


@dataclasses.dataclass(frozen=True)
class Head:
    """A parameter that an objective trains beside the model: of the train state and its checkpoints, of no export."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """Logical axis per dimension, as of the model's parameters."""
    std: float
    """Of its first values, which are normal; 0: zeros."""


class NextToken(Section, abc.ABC):
    """The base of the objectives: `loss` and `metrics` are theirs."""

    loss_chunk: Annotated[int, Field(ge=1)] | None = None
    """Tokens per device whose logits exist at a time; null: chosen from the vocabulary."""

    kind: str
    reads_kinds: ClassVar[bool] = False
    """Whether batches have `kinds` uint8[A, b, T]: what each label is (`data.rows.weighing`)."""

    def references(self) -> dict[str, Reference]:
        """Models that are needed beside the trained one, by a name."""
        return {}

    def unfit(self, model: ModelConfig, references: dict[str, ModelConfig]) -> list[str]:
        """What of this section does not fit the trained model and the frozen ones, a line each."""
        return []

    def heads(self, model: ModelConfig, references: dict[str, ModelConfig]) -> tuple[Head, ...]:
        """Parameters that are trained beside the model."""
        return ()

    def offline(self) -> OfflineTargets | None:
        """Targets on disk that the rows to train on carry, where it learns from such."""
        return None

    def pinned(self) -> dict[str, str]:
        """What of this section a run keeps from its first step to its last, by key."""
        return {"kind": self.kind}

    def own_samples(self) -> OnPolicy | None:
        """How batches of the trained model's own samples are made, where it learns from such."""
        return None

    def misfits(self, model: ModelConfig, sequence_length: int) -> list[tuple[str, str]]:
        """(key, what is wrong) where it cannot train such a model on sequences of this many tokens."""
        return []

    def init(self) -> State:
        """The state before the first step."""
        return {}

    def advance(self, state: State, metrics: Sums) -> State:
        """The state after a step whose metrics these are."""
        return state

    def totals(self, batch: Batch) -> Sums:
        """Denominators of the whole batch, arrays [A, b, T]: sum of loss weights, number of real tokens."""
        real = jnp.sum(batch["segment_ids"] > 0, dtype=jnp.int32)  # float32 stops counting at 2^24
        return {"weight": jnp.maximum(jnp.sum(batch["loss_weights"]), 1e-9), "tokens": jnp.maximum(real, 1)}

    @abc.abstractmethod
    def loss(self, model: Maverick, batch: Batch, totals: Sums, context: Context) -> tuple[jax.Array, Sums]:
        """This microbatch's share (arrays [b, T]) of the loss, float32[], and sums for `metrics`."""

    def metrics(self, model: Maverick, sums: Sums, totals: Sums, context: Context) -> Sums:
        """Metrics of the whole batch: `loss` is the mean cross-entropy in nats, without the regularisers."""
        out = {"loss": sums["nll"] / totals["weight"]}
        if sums["router"] is not None:
            out |= router_metrics(sums["router"], totals["tokens"], model.config.num_experts_per_tok)
        return out

    def evaluate(self, model: Maverick, batch: Batch, references: dict[str, Maverick]) -> Sums:
        """Sums over a held-out batch (arrays [b, T]): `loss` in nats, and others, over `weight` labels."""
        hidden, _ = hidden_states(model, batch)
        return {"loss": self.cross_entropy(model, hidden, batch).nll, "weight": jnp.sum(batch["loss_weights"])}

    def line(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """What a training line says of `metrics`, on the host."""
        return metrics

    def means(self, sums: dict[str, Any], written: Written) -> dict[str, Any]:
        """What an evaluation of data `written` so says, from the sums over its batches: means over labels, by name."""
        weight = max(float(sums["weight"]), 1e-9)
        return {name: float(total) / weight for name, total in sums.items() if name != "weight"}

    def cross_entropy(self, model: Maverick, hidden: jax.Array, batch: Batch, z_loss: float = 0.0) -> CrossEntropy:
        """Sums over the batch, with and without the z-loss, and of each token."""
        labels, weights = batch["labels"], batch["loss_weights"]
        head, chunk = model.output_weight(), self.loss_chunk
        return cross_entropy(hidden, head, labels, weights, rules=model.rules, z_loss=z_loss, chunk=chunk)


def hidden_states(model: Maverick, batch: Batch) -> tuple[jax.Array, RouterStats | None]:
    """As `Maverick.hidden`. `pixel_values` [N, C, S, S] is in batches that hold images."""
    return model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"], batch.get("pixel_values"))


def tapped_states(model: Maverick, batch: Batch, taps: Taps = NO_TAPS) -> Tapped:
    """As `hidden_states`, with what `taps` ask for: see `Maverick.tapped`."""
    return model.tapped(batch["tokens"], batch["positions"], batch["segment_ids"], batch.get("pixel_values"), taps)


def router_loss(config: ModelConfig, stats: RouterStats | None, tokens: jax.Array) -> jax.Array:
    """Balance terms, means over tokens and layers, weighted; 0 for a dense model, which has no `stats`."""
    if stats is None:
        return jnp.zeros((), jnp.float32)
    balance, scale = config.balance, 1.0 / (tokens.astype(jnp.float32) * config.num_moe_layers)
    loss = balance.z_loss * jnp.sum(stats.z_loss) * scale
    if balance.kind == "auxiliary_loss":
        loss += balance.weight * jnp.sum(stats.balance_loss) * scale
    return loss


def router_metrics(stats: RouterStats, tokens: jax.Array, top_k: int) -> Sums:
    """Per MoE layer, float32[layers]: heaviest expert over the mean (1 is perfect), entropy of the router in nats,
    fraction of experts that got no token, and the auxiliary loss (1 is perfect)."""
    tokens = tokens.astype(jnp.float32)
    share = stats.load / (tokens * top_k)
    return {
        "router_load_max": jnp.max(share, axis=-1) * stats.load.shape[-1],
        "router_entropy": stats.entropy / tokens,
        "router_idle": jnp.mean((stats.load == 0).astype(jnp.float32), axis=-1),
        "router_balance": stats.balance_loss / tokens,
    }
