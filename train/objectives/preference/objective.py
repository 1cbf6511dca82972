"""Preference optimization: which of two sides of a pair is preferred, with any of the losses of
`train.objectives.preference.losses`."""

import logging
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

import jax
import jax.numpy as jnp
import pydantic
from jax.sharding import reshard
from pydantic import Field

from maverick_jax.errors import InputError
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.layers import Taps
from maverick_jax.model.transformer import Maverick, Tapped
from maverick_jax.ops.label_log_probs import label_log_probs
from maverick_jax.parameters import Role
from train.objectives.base import Batch, ChunkedLogits, Context, Notice, Reference, StoredFields, Sums, ToStore
from train.objectives.next_token import router_loss, router_metrics
from train.objectives.preference import notices
from train.objectives.preference.losses import AnyLoss, SideSums, Sigmoid
from train.objectives.preference.losses.base import CHOSEN, REJECTED, apart
from train.objectives.preference.reference import (
    LABEL,
    MODEL,
    AdaptersOff,
    AnyReference,
    CopyReference,
    NoReference,
    StoredReference,
    reference_of_run,
)
from train.objectives.preference.sides import Counted, counted, divergence, mismatched_sums, side_sums

FIELDS = ("pair_ids", "sides")
log = logging.getLogger(__name__)

TAIL, DIVERGENCE = "pair_tail", "divergence"
Fraction = Annotated[float, Field(ge=0, le=1)]


class Preference(ChunkedLogits):
    """`objective: {kind: preference}`: the mean over pairs of a loss of both sides' log-probabilities, which count what
    the assistant writes; observations never count."""

    kind: Literal["preference"] = "preference"
    pair_loss: AnyLoss = Sigmoid()
    """The loss of a pair."""
    reference: AnyReference | None = None
    """What log-probabilities are compared with. null: the model without its adapters if only adapters are trained, or
    else the model at `model.init_from`; nothing if the loss needs nothing."""
    nll: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight, in the loss, of the mean cross-entropy of the chosen sides' tokens. It keeps chosen sides from becoming
    less likely; 0.1 to 0.2 is usual."""
    tail_weight: Fraction = 1.0
    """Weight of tokens of a side after as many as the shorter side of its pair has (length-desensitised DPO, arXiv
    2409.06411). 1: length counts in full."""
    balance_loss: bool | None = None
    """Whether the routers' balance terms are part of the loss. null: only if routers are trained."""
    route_change: bool = True
    """Whether the share of tokens whose first expert differs from the reference's is measured, per layer. It needs a
    loaded reference."""

    @pydantic.model_validator(mode="after")
    def _refers(self):
        given, needs = self.reference, self.pair_loss.needs_reference
        if given is not None and needs == isinstance(given, NoReference):
            wanted = "copy, adapters_off or stored" if needs else "none, or null"
            raise ValueError(
                f"reference.kind: {given.kind} with pair_loss.kind: {self.pair_loss.kind}; expected {wanted}"
            )
        return self

    # ---- what it needs -------------------------------------------------------------------------------------------

    def in_run(self, start: str | None, trained: Collection[Role], adapters: bool) -> Self:
        """With everything that follows from the rest of the config filled in."""
        balance = "router" in trained if self.balance_loss is None else self.balance_loss
        given = self.reference if self.reference or self.pair_loss.needs_reference else NoReference()
        reference = reference_of_run(given, start, trained, adapters)
        return self.model_copy(update={"reference": reference, "balance_loss": balance})

    def frozen(self) -> tuple[Role, ...]:
        """Routers: the reference routes by itself, and what differs has no gradient."""
        return ("router",)

    def fields(self) -> tuple[str, ...]:
        stored = self.stored_fields()
        return (*self.evaluation_fields(), *(stored.names if stored else ()))

    def evaluation_fields(self) -> tuple[str, ...]:
        tail = () if self.tail_weight == 1 else (TAIL,)
        return (*super().fields(), *FIELDS, *tail, *self.pair_loss.extra_fields)

    def references(self) -> dict[str, Reference]:
        return {} if self.reference is None else self.reference.references()

    def stored_fields(self) -> StoredFields | None:
        return None if self.reference is None else self.reference.stored_fields()

    def to_store(self) -> ToStore | None:
        reference = self.reference
        if not isinstance(reference, StoredReference) or reference.model is None:
            return None
        live = self.model_copy(update={"reference": CopyReference(path=reference.model)})
        return ToStore(live, MODEL, reference.wanted, 1.0)

    def check_data(self, counts: dict[str, dict[str, Any]]) -> None:
        """Sides without another one: only a loss of sides, or the cross-entropy of chosen ones, learns from them."""
        kind, learns = self.pair_loss.kind, self.pair_loss.of_sides or self.nll + self.pair_loss.nll > 0
        for name, found in counts.items():
            alone, records = (found.get("pairs", {}).get(key, 0) for key in ("unpaired", "pairs"))
            if self.pair_loss.needs_divergence and not found.get("pairs", {}).get("mismatched"):
                raise InputError(
                    f"data.sources.{name}.preferences.mismatched: false, and objective.pair_loss.kind: {kind} reads "
                    "answers to other prompts; expected true"
                )
            if not alone or learns:
                continue
            what = f"data.sources.{name}: {alone:,} of {records:,} records have one side"
            if alone == records:
                raise InputError(
                    f"{what}, and objective.pair_loss.kind: {kind} compares two; expected apo_zero, or pairs"
                )
            log.warning("%s, from which objective.pair_loss.kind: %s learns nothing", what, kind)

    def pinned(self) -> dict[str, str]:
        reference = "" if self.reference is None else self.reference.kind
        return {**super().pinned(), "pair_loss.kind": self.pair_loss.kind, "reference.kind": reference}

    # ---- training ------------------------------------------------------------------------------------------------

    def totals(self, batch: Batch) -> Sums:
        """As for all objectives, and the numbers of `pairs` and `sides` that count, the `weight` of their tokens and
        that of the `chosen` ones."""
        found = jax.lax.map(lambda microbatch: self._counted(microbatch)._asdict(), _fields(batch))
        found = jax.tree.map(lambda x: jnp.maximum(jnp.sum(x), 1e-9), _numbers(Counted(**found)))
        return found | super().totals(batch)

    def survey(self, model: Maverick, batch: Batch, context: Context) -> Sums:
        """The divergence that KTO reads, from one more forward pass of model and reference."""
        if not self.pair_loss.needs_divergence:
            return {}
        reference = self._reference(context)

        def changes(microbatch: Batch) -> tuple[jax.Array, jax.Array]:
            own, theirs, *_ = self._log_probs(model, microbatch, reference, Taps())
            return mismatched_sums(microbatch, own, theirs)

        return {DIVERGENCE: divergence(*(jnp.sum(x) for x in jax.lax.map(changes, batch)))}

    def loss(self, model: Maverick, batch: Batch, totals: Sums, context: Context) -> tuple[jax.Array, Sums]:
        reference = self._reference(context)
        loss, sums, seen = self._compared(model, batch, reference, totals.get(DIVERGENCE))
        units = totals["sides"] if self.pair_loss.of_sides else totals["pairs"]
        total = loss / units
        if weight := self.nll + self.pair_loss.nll:
            total += weight * sums["nll"] / totals["chosen"]
        if self.balance_loss:
            total += router_loss(model.config, seen.stats, totals["tokens"])
        return total, jax.lax.stop_gradient(sums | {"router": seen.stats})

    def metrics(self, model: Maverick, sums: Sums, totals: Sums, context: Context) -> Sums:
        """`loss`, the mean over pairs (or sides) without further terms, and see `docs/guides/alignment.md`."""
        units = totals["sides"] if self.pair_loss.of_sides else totals["pairs"]
        out = {"loss": sums["pair_loss"] / units, "nll": sums["nll"] / totals["chosen"]}
        out |= {name: sums[name] / totals["pairs"] for name in MEANS if name in sums}
        out |= {DIVERGENCE: totals[DIVERGENCE]} if DIVERGENCE in totals else {}
        if "route_change" in sums:
            out["route_change"] = sums["route_change"] / totals["tokens"].astype(jnp.float32)
        if sums["router"] is not None:
            out |= router_metrics(sums["router"], totals["tokens"], model.config.num_experts_per_tok)
        return out | {"pairs": totals["pairs"]}

    def notices(self, metrics: dict[str, Any]) -> dict[str, Notice]:
        return notices.of_update(metrics)

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, model: Maverick, batch: Batch, context: Context) -> Sums:
        """The sums of `loss`, and `weight`, the number of tokens that count. Without a reference at hand, sides are
        compared by the model alone."""
        reference = None if isinstance(self.reference, StoredReference) else self._reference(context)
        loss, sums, _ = self._compared(model, batch, reference)
        return sums | {"loss": loss, **_numbers(self._counted(batch))}

    def evaluation_metrics(self, sums: dict[str, Any]) -> dict[str, Any]:
        """As the metrics of updates."""
        number = lambda name: max(float(sums[name]), 1e-9)
        units = number("sides") if self.pair_loss.of_sides else number("pairs")
        out = {"loss": float(sums["loss"]) / units, "nll": float(sums["nll"]) / number("chosen")}
        return out | {name: float(sums[name]) / number("pairs") for name in MEANS if name in sums}

    def remarks(self, found: dict[str, Any], state: dict[str, float]) -> list[str]:
        return notices.of_evaluation(found, self.pair_loss.needs_reference)

    # ---- parts ---------------------------------------------------------------------------------------------------

    def _reference(self, context: Context) -> Maverick | None:
        """The loaded model that is compared with; None if there is none."""
        return context.base if isinstance(self.reference, AdaptersOff) else context.references.get(MODEL)

    def _counted(self, batch: Batch) -> Counted:
        return counted(batch, self.pair_loss.needs_tokens)

    def _compared(
        self, model: Maverick, batch: Batch, reference: Maverick | None, apart_by: jax.Array | None = None
    ) -> tuple[jax.Array, Sums, Tapped]:
        """The sum of the loss over pairs or sides, sums of metrics, and the model's outputs. `apart_by`: as of
        `of_log_probs`."""
        compares = self.route_change and reference is not None and model.config.num_moe_layers > 0
        taps = Taps(router=tuple(model.config.moe_layers)) if compares else Taps()
        own, theirs, seen, other = self._log_probs(model, batch, reference, taps)
        loss, sums = self.of_log_probs(batch, own, theirs, apart_by)
        if compares and other is not None:
            sums |= {"route_change": _route_change(seen, other, batch["segment_ids"] > 0)}
        return loss, sums, seen

    def _log_probs(
        self, model: Maverick, batch: Batch, reference: Maverick | None, taps: Taps
    ) -> tuple[jax.Array, jax.Array | None, Tapped, Tapped | None]:
        """Log-probabilities of labels by model and reference, float32[b, T], None without a reference; and what both
        have computed."""
        inputs = Inputs.of(batch)
        seen = model.tapped(inputs, taps)
        head, chunk = model.stored_output_weight(), self.loss_chunk
        own = label_log_probs(seen.hidden, head, batch["labels"], rules=model.rules, chunk=chunk)
        if reference is None:
            return own, batch.get(LABEL), seen, None
        other = reference.tapped(inputs, taps)
        theirs = self._reference_log_probs(reference, other, model, batch)
        return own, jax.lax.stop_gradient(theirs), seen, other

    def of_log_probs(
        self, batch: Batch, own: jax.Array, theirs: jax.Array | None, apart_by: jax.Array | None = None
    ) -> tuple[jax.Array, Sums]:
        """The sum of the loss over pairs or sides, and sums of metrics, from log-probabilities of labels by the model
        and by the reference, float32[b, T] in nats; None: without a reference. `apart_by`: the divergence that KTO
        reads, float32[]; None: that of this batch."""
        there, plain = self._counted(batch), side_sums(batch, own, theirs)
        sides = self._weighted(batch, own, theirs, plain)
        mask = there.sides if self.pair_loss.of_sides else there.pairs
        safe = _safe(sides, there.pairs[..., None] | there.sides)
        if self.pair_loss.needs_divergence:
            found = divergence(*mismatched_sums(batch, own, theirs)) if apart_by is None else apart_by
            safe = safe._replace(divergence=found)
        values = self.pair_loss.values(safe)
        loss = jnp.sum(jnp.where(mask, values, 0))
        nll = -jnp.sum(jnp.where(there.sides, plain.log_prob, 0)[..., CHOSEN])
        return loss, _metrics(plain, there, theirs is not None) | {"pair_loss": loss, "nll": nll}

    def _weighted(self, batch: Batch, own: jax.Array, theirs: jax.Array | None, plain: SideSums) -> SideSums:
        """The sums that the loss reads: `plain` ones unless it weighs tokens by their place."""
        factors = self.pair_loss.factors(batch)
        if self.tail_weight != 1:
            tail = jnp.where(batch[TAIL] > 0, jnp.float32(self.tail_weight), jnp.float32(1))
            factors = tail if factors is None else factors * tail
        if factors is None:
            return plain
        return side_sums(batch, own, theirs, factors)._replace(count=plain.count)

    def _reference_log_probs(self, reference: Maverick, seen: Tapped, model: Maverick, batch: Batch) -> jax.Array:
        """log p(label) by the reference, float32[b, T], placed like the model's."""
        rules = model.rules
        hidden = reshard(seen.hidden, rules("batch", "length", None))
        head = reshard(reference.output_weight(), rules.compute("embed", "vocab"))
        return label_log_probs(hidden, head, batch["labels"], rules=rules, chunk=self.loss_chunk)


MEANS = ("chosen_log_prob", "rejected_log_prob", "margin", "accuracy", "chosen_change", "rejected_change")
"""Metrics that are means over pairs."""


def _fields(batch: Batch) -> Batch:
    return {name: batch[name] for name in (*FIELDS, "loss_weights")}


def _numbers(there: Counted) -> Sums:
    """Sums over a batch, float32[...]."""
    both = jnp.where(there.sides, there.weight, 0)
    number = lambda mask: jnp.sum(mask.astype(jnp.float32))
    return {"pairs": number(there.pairs), "sides": number(there.sides), "weight": jnp.sum(both),
            "chosen": jnp.sum(both[..., CHOSEN])}  # fmt: skip


def _safe(sides: SideSums, there: jax.Array) -> SideSums:
    """`sides` with harmless numbers in place of those that are not `there`, so that they get no NaN as gradient."""
    return SideSums(*(jnp.where(there, x, fill) for x, fill in zip(sides[:3], (-1.0, -1.0, 1.0), strict=True)))


def _metrics(sides: SideSums, there: Counted, compared: bool) -> Sums:
    """Sums over pairs. `compared`: with a reference; otherwise the margin is that of log-probabilities."""
    total = lambda x: jnp.sum(jnp.where(there.pairs, x, 0))
    gap = sides.gap if compared else apart(sides.log_prob)
    out = {"margin": total(gap), "accuracy": total((gap > 0).astype(jnp.float32))}
    out |= {f"{name}_log_prob": total(sides.log_prob[..., i]) for name, i in _SIDES}
    return out | ({f"{name}_change": total(sides.change[..., i]) for name, i in _SIDES} if compared else {})


_SIDES = (("chosen", CHOSEN), ("rejected", REJECTED))


def _route_change(one: Tapped, other: Tapped, real: jax.Array) -> jax.Array:
    """Per MoE layer, float32[layers]: the number of real tokens, bool[b, T], whose first expert differs."""
    differs = lambda a, b: jnp.argmax(a, axis=-1) != jnp.argmax(reshard(b, jax.typeof(a).sharding.spec), axis=-1)
    count = lambda a, b: jnp.sum((differs(a, b) & reshard(real, _tokens_of(a))).astype(jnp.float32))
    return jnp.stack([count(a, b) for a, b in zip(one.routers, other.routers, strict=True)])


def _tokens_of(logits: jax.Array):
    return jax.sharding.PartitionSpec(*jax.typeof(logits).sharding.spec[:2])
