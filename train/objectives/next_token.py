"""The base of objectives that predict the next token."""

import jax
import jax.numpy as jnp

from maverick_jax.config import ModelConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.moe import RouterStats
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.cross_entropy import CrossEntropy, cross_entropy
from train.objectives.base import Batch, ChunkedLogits, Context, Sums


class NextToken(ChunkedLogits):
    """The base of objectives that predict the next token. Each defines its own `loss`."""

    def totals(self, batch: Batch) -> Sums:
        """`tokens`, the number of tokens without padding, and `weight`, the sum of loss weights."""
        return {"weight": jnp.maximum(jnp.sum(batch["loss_weights"]), 1e-9), **super().totals(batch)}

    def metrics(self, model: Maverick, sums: Sums, totals: Sums, context: Context) -> Sums:
        """`loss`, the mean cross-entropy in nats without regularizers, and the metrics of the routers."""
        out = {"loss": sums["nll"] / totals["weight"]}
        if sums["router"] is not None:
            out |= router_metrics(sums["router"], totals["tokens"], model.config.num_experts_per_tok)
        return out

    def evaluate(self, model: Maverick, batch: Batch, context: Context) -> Sums:
        """`loss`, the sum of cross-entropies in nats, over `weight` labels."""
        hidden, _ = model.hidden(Inputs.of(batch))
        return {"loss": self.cross_entropy(model, hidden, batch).nll, "weight": jnp.sum(batch["loss_weights"])}

    def cross_entropy(self, model: Maverick, hidden: jax.Array, batch: Batch, z_loss: float = 0.0) -> CrossEntropy:
        """The cross-entropy of a batch: sums with and without the z-loss, and the value of each token."""
        labels, weights = batch["labels"], batch["loss_weights"]
        head, chunk = model.stored_output_weight(), self.loss_chunk
        return cross_entropy(hidden, head, labels, weights, rules=model.rules, z_loss=z_loss, chunk=chunk)


def router_loss(config: ModelConfig, stats: RouterStats | None, tokens: jax.Array) -> jax.Array:
    """Weighted balance terms, float32[], each a mean over tokens and layers; 0 for a dense model, which has no
    `stats`."""
    if stats is None:
        return jnp.zeros((), jnp.float32)
    balance, scale = config.balance, 1.0 / (tokens.astype(jnp.float32) * config.num_moe_layers)
    loss = balance.z_loss * jnp.sum(stats.z_loss) * scale
    if balance.kind == "auxiliary_loss":
        loss += balance.weight * jnp.sum(stats.balance_loss) * scale
    return loss


def router_metrics(stats: RouterStats, tokens: jax.Array, top_k: int) -> Sums:
    """Per MoE layer, float32[layers]: load of the most loaded expert over the mean load (1 is perfect), entropy of the
    router in nats, fraction of experts that got no token, and the auxiliary loss (1 is perfect); of experts of limited
    capacity, also how many assignments of tokens they dropped in the update. And `router_load`, int32[layers, experts],
    the load of each expert in hundredths of the mean."""
    tokens = tokens.astype(jnp.float32)
    share = stats.load / (tokens * top_k)
    dropped = {} if stats.dropped is None else {"router_dropped": stats.dropped}
    return dropped | {
        "router_load": jnp.round(share * (100 * stats.load.shape[-1])).astype(jnp.int32),
        "router_load_max": jnp.max(share, axis=-1) * stats.load.shape[-1],
        "router_entropy": stats.entropy / tokens,
        "router_idle": jnp.mean((stats.load == 0).astype(jnp.float32), axis=-1),
        "router_balance": stats.balance_loss / tokens,
    }
