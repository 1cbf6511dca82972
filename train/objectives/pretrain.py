"""Next-token prediction with the router's balance terms."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from maverick_jax.config import Balance
from maverick_jax.model.moe import RouterStats
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.cross_entropy import cross_entropy
from maverick_jax.section import Section

Batch = dict[str, jax.Array]
Sums = dict[str, Any]


class Pretrain(Section):
    """`objective: {kind: pretrain}`. Everything it returns is a sum over tokens, or is divided by a total of the whole
    batch, so that microbatches add up to exactly the large batch."""

    kind: Literal["pretrain"] = "pretrain"
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of mean(logsumexp(logits)^2), which keeps logits from drifting (PaLM, arXiv 2204.02311)."""
    loss_chunk: Annotated[int, Field(ge=1)] | None = None
    """Tokens per device whose logits exist at a time; null: chosen from the vocabulary."""

    def totals(self, batch: Batch) -> Sums:
        """Denominators of the whole batch, arrays [A, b, T]: sum of loss weights, number of real tokens."""
        real = jnp.sum(batch["segment_ids"] > 0, dtype=jnp.int32)  # float32 stops counting at 2^24
        return {"weight": jnp.maximum(jnp.sum(batch["loss_weights"]), 1e-9), "tokens": jnp.maximum(real, 1)}

    def loss(self, model: Maverick, batch: Batch, totals: Sums) -> tuple[jax.Array, Sums]:
        """This microbatch's share (arrays [b, T]) of the loss, float32[], and sums for `metrics`."""
        hidden, stats = self._hidden(model, batch)
        ce, nll = self._cross_entropy(model, hidden, batch)
        loss = ce / totals["weight"]
        if stats is not None:
            loss += router_loss(model.config.balance, stats, totals["tokens"], model.config.num_moe_layers)
        return loss, {"nll": nll, "router": jax.lax.stop_gradient(stats)}

    def metrics(self, model: Maverick, sums: Sums, totals: Sums) -> Sums:
        """Metrics of the whole batch: `loss` is the mean cross-entropy in nats, without the regularisers."""
        out = {"loss": sums["nll"] / totals["weight"]}
        if sums["router"] is not None:
            out |= router_metrics(sums["router"], totals["tokens"], model.config.num_experts_per_tok)
        return out

    def evaluate(self, model: Maverick, batch: Batch) -> Sums:
        """Sums over a held-out batch (arrays [b, T]): `nll` in nats over `weight` labels."""
        hidden, _ = self._hidden(model, batch)
        return {"nll": self._cross_entropy(model, hidden, batch)[1], "weight": jnp.sum(batch["loss_weights"])}

    def _hidden(self, model: Maverick, batch: Batch):
        """`pixel_values` [N, C, S, S] is in batches that hold images."""
        images = batch.get("pixel_values")
        return model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"], images)

    def _cross_entropy(self, model: Maverick, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return cross_entropy(
            hidden,
            model.output_weight(),
            batch["labels"],
            batch["loss_weights"],
            rules=model.rules,
            z_loss=self.z_loss,
            chunk=self.loss_chunk,
        )


def router_loss(balance: Balance, stats: RouterStats, tokens: jax.Array, num_layers: int) -> jax.Array:
    """Balance terms, means over tokens and layers, weighted."""
    scale = 1.0 / (tokens.astype(jnp.float32) * num_layers)
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
