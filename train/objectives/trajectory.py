"""Training on whole trajectories, with loss weights from data and config, and a loss for each token kind."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from data.rows.fields import FIELDS
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from train.objectives.base import Batch, Context, Sums
from train.objectives.decision_counts import DECISIONS, decision_counts
from train.objectives.next_token import NextToken, router_loss

KINDS = FIELDS["kinds"]
BY_KIND, TOKENS_BY_KIND = "kind_loss", "kind_tokens"


class TrajectoryTuning(NextToken):
    """`objective: {kind: trajectory}`: cross-entropy with loss weights from `data.kind_weights` and the trajectories,
    and the router's balance terms."""

    kind: Literal["trajectory"] = "trajectory"
    normalise: Literal["weights", "count"] = "weights"
    """Divisor of the weighted sum over the whole batch. `weights`: the sum of weights, so that only their ratios
    matter; `count`: the number of tokens with a weight, so that a weight also scales the learning rate."""
    z_loss: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Weight of mean(logsumexp(logits)^2), which keeps logits from drifting (PaLM, arXiv 2204.02311)."""

    def fields(self) -> tuple[str, ...]:
        return (*super().fields(), "kinds")

    def evaluation_fields(self) -> tuple[str, ...]:
        return (*super().evaluation_fields(), "kinds", "choices")

    def totals(self, batch: Batch) -> Sums:
        """As for pretraining, and `norm`, the denominator of the loss, and `kinds`, the number of labels by token
        kind."""
        found = super().totals(batch)
        counted = jnp.maximum(jnp.sum(batch["loss_weights"] > 0, dtype=jnp.int32), 1).astype(jnp.float32)
        norm = found["weight"] if self.normalise == "weights" else counted
        return found | {"norm": norm, "kinds": _by_kind(batch["kinds"], jnp.ones_like(batch["labels"]))}

    def loss(self, model: Maverick, batch: Batch, totals: Sums, context: Context) -> tuple[jax.Array, Sums]:
        hidden, stats = model.hidden(Inputs.of(batch))
        sums = self.cross_entropy(model, hidden, batch, self.z_loss)
        loss = sums.total / totals["norm"]
        loss += router_loss(model.config, stats, totals["tokens"])
        by_kind = _by_kind(batch["kinds"], sums.per_token)
        return loss, {"nll": sums.nll, "kinds": by_kind, "router": jax.lax.stop_gradient(stats)}

    def metrics(self, model: Maverick, sums: Sums, totals: Sums, context: Context) -> Sums:
        """As for pretraining, with `loss` the weighted mean, and sums and counts by token kind."""
        by_kind = {BY_KIND: sums["kinds"], TOKENS_BY_KIND: totals["kinds"]}
        return super().metrics(model, sums, totals, context) | by_kind

    def training_metrics(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """`metrics` with the values by token kind named: `kind_loss`, the unweighted mean cross-entropy in nats, and
        `kind_tokens`, the number of labels; only kinds that occur in the batch."""
        return metrics | _named_by_kind(metrics)

    def evaluate(self, model: Maverick, batch: Batch, context: Context) -> Sums:
        """As for pretraining, with sums and counts by token kind, and counts of decisions."""
        hidden, _ = model.hidden(Inputs.of(batch))
        sums = self.cross_entropy(model, hidden, batch)
        counts = _by_kind(batch["kinds"], jnp.ones_like(batch["labels"]))
        by_kind = {BY_KIND: _by_kind(batch["kinds"], sums.per_token), TOKENS_BY_KIND: counts}
        decisions = decision_counts(hidden, model.output_weight(), batch, model.rules, self.loss_chunk)
        return {"loss": sums.nll, "weight": jnp.sum(batch["loss_weights"]), DECISIONS: decisions, **by_kind}

    def evaluation_metrics(self, sums: dict[str, Any]) -> dict[str, Any]:
        """As for pretraining, with values by token kind as in `training_metrics`. `train.evaluation.decisions` handles
        the counts of decisions."""
        means = {name: value for name, value in sums.items() if name not in (BY_KIND, TOKENS_BY_KIND, DECISIONS)}
        return super().evaluation_metrics(means) | _named_by_kind(sums)


def _named_by_kind(sums: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Mean losses and counts by name of token kind, for the kinds that occur."""
    losses, counts = (np.asarray(sums[name]).tolist() for name in (BY_KIND, TOKENS_BY_KIND))
    there = [(name, loss, n) for name, loss, n in zip(KINDS.values, losses, counts, strict=True) if n]
    return {BY_KIND: {name: loss / n for name, loss, n in there}, TOKENS_BY_KIND: {name: n for name, _, n in there}}


def _by_kind(kinds: jax.Array, values: jax.Array) -> jax.Array:
    """Sums of `values` over the tokens of each kind, [kinds] in the dtype of `values`. `values` and `kinds` (uint8)
    have one shape [..., T]."""
    of_kind = lambda kind: jnp.sum(jnp.where(kinds == kind, values, 0), dtype=values.dtype)
    return jnp.stack([of_kind(kind) for kind in range(len(KINDS.values))])
