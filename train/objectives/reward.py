"""Reward models: which of two runs is better, and what is wrong with single turns."""

import logging
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from data.rows.fields import FIELDS
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.model.heads import SCORES, TURN_BIAS, Judgements, judgements
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.segment_sums import segment_sums
from train.objectives.base import Batch, Context, Head, Objective, Sums
from train.objectives.next_token import router_loss, router_metrics
from train.objectives.policy.losses import bradley_terry

ENDS, TURNS = "side_ends", "turn_labels"
LABELS, NO_LABEL = FIELDS[TURNS].values, FIELDS[TURNS].fill
BINS = 10
"""Bins of confidence, from 0.5 to 1, in which it is compared with accuracy."""
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
log = logging.getLogger(__name__)


class Reward(Objective):
    """`objective: {kind: reward}`: a reward per run, such that the chosen side of each pair gets more than the rejected
    one (Bradley-Terry), and logits of labels at the ends of turns. Both are read by heads beside the model."""

    kind: Literal["reward"] = "reward"
    margin: Weight = 0.0
    """By how much the reward of the chosen side should be higher at least."""
    center: Weight = 0.01
    """Weight of the squared sum of both rewards, which keeps rewards near 0 (arXiv 2312.09244)."""
    turns: Weight = 0.5
    """Weight of the loss of the turns' labels: the mean over labelled turns of the binary cross-entropies of all
    labels."""
    balance_loss: bool = True
    """Whether the routers' balance terms are part of the loss."""

    def fields(self) -> tuple[str, ...]:
        return (*super().fields(), ENDS, TURNS)

    def evaluation_fields(self) -> tuple[str, ...]:
        return self.fields()

    def heads(self, model: ModelConfig, references: dict[str, ModelConfig]) -> tuple[Head, ...]:
        std = 1 / (model.hidden_size + 1)
        return (Head(SCORES, (model.hidden_size, 1 + len(LABELS)), ("embed", None), std),
                Head(TURN_BIAS, (len(LABELS),), (None,), 0.0))  # fmt: skip

    def check_data(self, counts: dict[str, dict[str, Any]]) -> None:
        for name, found in counts.items():
            alone, records = (found.get("pairs", {}).get(key, 0) for key in ("unpaired", "pairs"))
            if not records or alone == records:
                raise InputError(f"data.sources.{name}: no pairs, which objective.kind: reward compares; expected "
                                 "kind: preferences, with two sides in each pair")  # fmt: skip
            if alone:
                log.warning(
                    "data.sources.%s: %d of %d records have one side, which is not compared", name, alone, records
                )

    # ---- training ------------------------------------------------------------------------------------------------

    def totals(self, batch: Batch) -> Sums:
        """As for all objectives, and the numbers of `pairs` and of labelled `turns`."""
        pairs = jax.lax.map(lambda ends: _there(ends)[0], batch[ENDS])
        number = lambda mask: jnp.maximum(jnp.sum(mask.astype(jnp.float32)), 1e-9)
        found = {"pairs": number(pairs), "turns": number(batch[TURNS] != NO_LABEL)}
        return found | super().totals(batch)

    def loss(self, model: Maverick, batch: Batch, totals: Sums, context: Context) -> tuple[jax.Array, Sums]:
        hidden, stats = model.hidden(Inputs.of(batch))
        sums = self.of_judgements(judgements(hidden, context.heads, model.rules), batch)
        total = sums["pair_loss"] / totals["pairs"] + self.turns * sums["turn_loss"] / totals["turns"]
        if self.balance_loss:
            total += router_loss(model.config, stats, totals["tokens"])
        return total, jax.lax.stop_gradient(sums | {"router": stats})

    def of_judgements(self, found: Judgements, batch: Batch) -> Sums:
        """Sums over the pairs and the labelled turns of a batch: losses and metrics."""
        there, rewards = _there(batch[ENDS])[0], _rewards(found.reward, batch[ENDS])
        rewards = jnp.where(there[..., None], rewards, 0)
        total = lambda x: jnp.sum(jnp.where(there, x, 0))
        gap = rewards[..., 0] - rewards[..., 1]
        loss = bradley_terry(rewards[..., 0], rewards[..., 1], margin=self.margin, center=self.center)
        labels = batch[TURNS]
        is_turn = labels != NO_LABEL
        wanted = labels[..., None] == jnp.arange(len(LABELS), dtype=labels.dtype)[None, None, :]
        entropies = jnp.sum(jnp.logaddexp(0.0, jnp.where(wanted, -found.turns, found.turns)), axis=-1)
        right = jnp.argmax(found.turns, axis=-1).astype(labels.dtype) == labels
        return {
            "pair_loss": total(loss),
            "margin": total(gap),
            "accuracy": total((gap > 0).astype(jnp.float32)),
            "reward": total(jnp.mean(rewards, axis=-1)),
            "turn_loss": jnp.sum(jnp.where(is_turn, entropies, 0)),
            "turns_right": _by_label(is_turn & right, labels),
            "turns_seen": _by_label(is_turn, labels),
        }

    def metrics(self, model: Maverick, sums: Sums, totals: Sums, context: Context) -> Sums:
        """`loss`, the mean over pairs without the turns' labels, and see `docs/guides/alignment.md`."""
        out = {"loss": sums["pair_loss"] / totals["pairs"], "turn_loss": sums["turn_loss"] / totals["turns"]}
        out |= {name: sums[name] / totals["pairs"] for name in ("margin", "accuracy", "reward")}
        out |= {"turn_accuracy": jnp.sum(sums["turns_right"]) / totals["turns"], "pairs": totals["pairs"]}
        if sums["router"] is not None:
            out |= router_metrics(sums["router"], totals["tokens"], model.config.num_experts_per_tok)
        return out

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, model: Maverick, batch: Batch, context: Context) -> Sums:
        """The sums of training, `weight`, the number of pairs, and the confidence in pairs by bin."""
        if SCORES not in context.heads:
            raise InputError(
                "objective.kind: reward: this checkpoint has no reward heads; expected one of a run with it"
            )
        hidden, _ = model.hidden(Inputs.of(batch))
        found = judgements(hidden, context.heads, model.rules)
        there, rewards = _there(batch[ENDS])[0], _rewards(found.reward, batch[ENDS])
        gap = rewards[..., 0] - rewards[..., 1]
        sums = self.of_judgements(found, batch)
        confidence = calibration_sums(jax.nn.sigmoid(jnp.abs(gap)), gap > 0, there)
        return sums | {"loss": sums["pair_loss"], "confidence": confidence,
                       "weight": jnp.sum(there.astype(jnp.float32))}  # fmt: skip

    def evaluation_metrics(self, sums: dict[str, Any]) -> dict[str, Any]:
        """As the metrics of updates; `turn_recall` by label, and `calibration_error`: the mean distance of the
        confidence in pairs, sigmoid(|margin|), from the part of them that is right, over bins of confidence."""
        pairs, seen = max(float(sums["weight"]), 1e-9), np.asarray(sums["turns_seen"])
        turns = max(float(seen.sum()), 1e-9)
        out = {name: float(sums[name]) / pairs for name in ("loss", "margin", "accuracy", "reward")}
        out |= {"turn_loss": float(sums["turn_loss"]) / turns,
                "turn_accuracy": float(np.sum(sums["turns_right"])) / turns}  # fmt: skip
        right = np.asarray(sums["turns_right"])
        recall = {name: float(right[i] / seen[i]) for i, name in enumerate(LABELS) if seen[i]}
        return out | {"turn_recall": recall, "calibration_error": calibration_error(np.asarray(sums["confidence"]))}


def _there(ends: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which of a row's pairs have both sides, bool[b, T // 2], and which sides are there, bool[b, T // 2, 2]."""
    sides = _rewards(jnp.ones(ends.shape, jnp.float32), ends) > 0
    return jnp.all(sides, axis=-1), sides


def _rewards(values: jax.Array, ends: jax.Array) -> jax.Array:
    """float32[b, T // 2, 2]: the values [b, T] at the ends of both sides of each pair; 0 for a side that is missing."""
    P = ends.shape[-1] // 2
    found = segment_sums(values, ends - 1, 2 * P)
    return found.reshape(found.shape[0], P, 2)


def _by_label(mask: jax.Array, labels: jax.Array) -> jax.Array:
    """float32[labels]: the number of places of `mask` by their label."""
    return jnp.stack([jnp.sum((mask & (labels == i)).astype(jnp.float32)) for i in range(len(LABELS))])


def calibration_sums(confidence: jax.Array, right: jax.Array, there: jax.Array) -> jax.Array:
    """float32[BINS, 3]: by bin of confidence, the sum of confidences, the number of right ones, and that of all."""
    bins = jnp.clip(jnp.floor((confidence - 0.5) * (2 * BINS)), 0, BINS - 1).astype(jnp.int32)
    columns = jnp.stack([confidence, right.astype(jnp.float32), jnp.ones_like(confidence)], axis=-1)
    inside = [jnp.where((there & (bins == i))[..., None], columns, 0) for i in range(BINS)]
    return jnp.stack([jnp.sum(part, axis=tuple(range(part.ndim - 1))) for part in inside])


def calibration_error(sums: np.ndarray) -> float:
    """The expected calibration error from `calibration_sums`: the mean over pairs of |confidence - accuracy| of their
    bin."""
    return float(np.abs(sums[:, 0] - sums[:, 1]).sum() / max(float(sums[:, 2].sum()), 1e-9))
