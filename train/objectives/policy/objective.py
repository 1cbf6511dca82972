"""Reinforcement learning: the model plays episodes in environments and learns from their rewards, by any of the methods
of `train.objectives.policy.methods`."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx
from jax.sharding import reshard
from pydantic import Field

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.model.inputs import ROUTES, Inputs
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.label_log_probs import label_log_probs
from maverick_jax.parameters import Role
from maverick_jax.settings.section import Section
from train.objectives.base import Batch, ChunkedLogits, Context, Findings, Head, Reference, State, Sums
from train.objectives.next_token import router_loss, router_metrics
from train.objectives.policy import losses
from train.objectives.policy.advantages import generalized, whitened
from train.objectives.policy.corrections import Correction
from train.objectives.policy.methods import AnyMethod, Grpo, Ppo
from train.objectives.policy.penalty import ViolationPenalty
from train.objectives.preference.reference import MODEL, AdaptersOff, AnyReference, StoredReference, reference_of_run
from train.rollouts.episode_rows import EpisodeRows, Row
from train.rollouts.policy_batches import PolicyBatchMaker
from train.rollouts.settings import Environments, RolloutSettings, unread_policies

VALUE = "value"
FIELDS = ("advantages", "sampled_log_probs", "old_log_probs")
OF_VALUES = ("old_values", "returns")
MULTIPLIER, VIOLATIONS = "multiplier", "violation_rate"


class ReferenceDivergence(Section):
    """`objective.kl`: holds the model to a reference."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Weight of the mean divergence of tokens in the loss."""
    kind: Literal["k1", "k2", "k3"] = "k3"
    """The estimate from a sampled token; d = reference - model. `k1`: -d, whose gradient in a loss is 0 on average;
    `k2`: d^2 / 2; `k3`: e^d - d - 1 in value, with the gradient of `k2`."""


class Policy(ChunkedLogits):
    """`objective: {kind: policy}`: reinforcement learning from episodes in environments."""

    kind: Literal["policy"] = "policy"
    method: AnyMethod = Grpo()
    """How rewards become a loss."""
    environments: Environments
    """The environments, by names of your choice; their tasks take turns."""
    rollouts: RolloutSettings
    """How episodes are played."""
    kl: ReferenceDivergence | None = None
    """How the model is held to a reference; null: it is not."""
    reference: AnyReference | None = None
    """The reference of `kl`. null: the model without its adapters if only adapters are trained, or else the model at
    `model.init_from`."""
    replay_routes: bool = False
    """Whether all updates on a set of episodes use the experts that were chosen before the first of them."""
    penalty: ViolationPenalty | None = None
    """What episodes lose that break a rule of their environment's `policy`; null: nothing."""
    correction: Correction | None = None
    """Correction of the difference between the engine that samples and the forward pass that is trained. null: none,
    because both have the same weights; `sampler_gap` says how far they are apart."""
    balance_loss: bool | None = None
    """Whether the routers' balance terms are part of the loss. null: only if routers are trained."""

    @pydantic.model_validator(mode="after")
    def _fits(self):
        if self.method.compares and self.rollouts.group == 1:
            raise ValueError(f"rollouts.group: 1, and method.kind: {self.method.kind} compares the episodes of a group")
        if isinstance(self.reference, StoredReference):
            raise ValueError("reference.kind: stored, and episodes are new in every update; expected copy")
        if self.reference is not None and self.kl is None:
            raise ValueError("reference: given without kl, which alone reads it")
        ruled = any(environment.policy is not None for environment in self.environments.values())
        for key, asked in (("penalty", self.penalty is not None), ("rollouts.gate", self.rollouts.gate)):
            if asked and not ruled:
                raise ValueError(f"{key}: needs the rules of an environment, and none has a `policy`")
        if self.correction is not None and self.rollouts.temperature != 1:
            raise ValueError("correction: needs rollouts.temperature: 1, at which the engine reports log-probabilities")
        return self

    # ---- what it needs -------------------------------------------------------------------------------------------

    def in_run(self, start: str | None, trained: Collection[Role], adapters: bool) -> Self:
        """With everything that follows from the rest of the config filled in."""
        balance = "router" in trained if self.balance_loss is None else self.balance_loss
        reference = None if self.kl is None else reference_of_run(self.reference, start, trained, adapters)
        return self.model_copy(update={"reference": reference, "balance_loss": balance})

    def frozen(self) -> tuple[Role, ...]:
        """Routers: the engine and the loss must choose the same experts."""
        return ("router",)

    def fields(self) -> tuple[str, ...]:
        more = {ROUTES: self.replay_routes, VIOLATIONS: self.penalty is not None}
        asked = [name for name, read in more.items() if read]
        return (*super().fields(), *FIELDS, *(OF_VALUES if self.method.has_values else ()), *asked)

    def references(self) -> dict[str, Reference]:
        return {} if self.reference is None else self.reference.references()

    def batch_maker(self) -> PolicyBatchMaker:
        return PolicyBatchMaker(self)

    def heads(self, model: ModelConfig, references: dict[str, ModelConfig]) -> tuple[Head, ...]:
        """The value head of methods that have one."""
        if not self.method.has_values:
            return ()
        return (Head(VALUE, (model.hidden_size,), (None,), 1 / (model.hidden_size + 1)),)

    def check_model(self, model: ModelConfig, sequence_length: int) -> Findings:
        if not self.replay_routes:
            return []
        why = {"the model has no routed experts": not model.moe_layers,
               "model.loops runs layers several times": model.loops is not None}  # fmt: skip
        return [("objective.replay_routes", f"true, and {said}; expected false") for said, so in why.items() if so]

    def check_batch(self, batch_size: int, sequence_length: int, groups: int) -> Findings:
        # asked of a job of one process, JAX would look for devices, which a plan for other devices must not do
        if jax.distributed.is_initialized() and (processes := jax.process_count()) > 1:
            return [
                ("objective.kind", f"policy plays episodes in one process, and the job has {processes}; expected 1")
            ]
        unread = unread_policies(self.environments)
        return [*unread, *self.rollouts.misfits(batch_size, sequence_length, groups)]

    def pinned(self) -> dict[str, str]:
        updates = f"{self.rollouts.passes} x {self.rollouts.minibatches}"
        return {**super().pinned(), "method.kind": self.method.kind, "rollouts.passes x minibatches": updates}

    # ---- episodes (`train.rollouts.policy_batches.Learner`) --------------------------------------------------------

    @property
    def scores_first(self) -> bool:
        return self.method.has_values or self.replay_routes or self.rollouts.updates > 1

    def group_advantages(self, rewards: np.ndarray) -> np.ndarray:
        return self.method.advantages(rewards)

    def credited(self, rewards: np.ndarray, violated: np.ndarray, state: Mapping[str, Any]) -> np.ndarray:
        return rewards if self.penalty is None else self.penalty.penalized(rewards, violated, state[MULTIPLIER])

    def loss_mean(self) -> tuple[str, bool]:
        return self.method.normalization, self.method.drop_equal

    def score(self, model: Maverick, heads: dict[str, nnx.Param], batch: Batch) -> Batch:
        def one(microbatch: Batch) -> Batch:
            inputs, chosen = dataclasses.replace(Inputs.of(microbatch), routes=None), {}
            if self.replay_routes:
                hidden, _, routes = model.routed(inputs)
                chosen = {ROUTES: routes}
            else:
                hidden, _ = model.hidden(inputs)
            new, values = self._read(hidden, model, microbatch, heads)
            return {"old_log_probs": new, "old_values": values} | chosen

        return jax.lax.map(one, batch)

    def estimated(self, rewards: np.ndarray, values: np.ndarray, rows: EpisodeRows) -> Row | None:
        if not isinstance(self.method, Ppo):
            return None
        estimates = jax.jit(self._estimated)(rewards, values, rows.mask, rows.last)
        return dict(zip(("advantages", "returns"), map(np.asarray, estimates), strict=True))

    def _estimated(self, rewards, values, mask, ends) -> tuple[jax.Array, jax.Array]:
        assert isinstance(self.method, Ppo)
        gamma, decay = self.method.gamma, self.method.decay
        advantages, returns = generalized(rewards, values, mask, gamma=gamma, decay=decay, ends=ends)
        return whitened(advantages, mask), returns

    # ---- training ------------------------------------------------------------------------------------------------

    def init(self) -> State:
        """The multiplier of the penalty, if there is one."""
        return {} if self.penalty is None else {MULTIPLIER: jnp.float32(self.penalty.start)}

    def advance(self, state: State, metrics: Sums) -> State:
        if self.penalty is None:
            return state
        return {MULTIPLIER: self.penalty.next(state[MULTIPLIER], metrics[VIOLATIONS])}

    def totals(self, batch: Batch) -> Sums:
        """As for all objectives, and the number of tokens that are learned from, `written`."""
        written = jnp.sum((batch["loss_weights"] > 0).astype(jnp.float32))
        found = {"written": jnp.maximum(written, 1), **super().totals(batch)}
        return found if self.penalty is None else found | {VIOLATIONS: jnp.mean(batch[VIOLATIONS])}

    def loss(self, model: Maverick, batch: Batch, totals: Sums, context: Context) -> tuple[jax.Array, Sums]:
        new, values, stats = self._seen(model, batch, context.heads)
        shares, old = batch["loss_weights"], batch["old_log_probs"]
        mask = (shares > 0).astype(jnp.float32)
        old = jnp.where(jnp.isinf(old), jax.lax.stop_gradient(new), old)
        token = self.method.token_loss(new, old, batch)
        if self.correction is not None:
            token *= self.correction.weights(old - batch["sampled_log_probs"], mask, batch["segment_ids"])
        sums = {"policy_loss": _total(shares, token)} | self._measured(new, old, batch, mask)
        total = sums["policy_loss"]
        if self.kl is not None:
            theirs = jax.lax.stop_gradient(self._reference_log_probs(model, batch, context))
            divergence = losses.divergence(new, theirs, self.kl.kind)
            total += self.kl.weight * _total(shares, divergence)
            sums["reference_kl"] = _total(mask, losses.divergence(new, theirs, "k3"))
        if isinstance(self.method, Ppo):
            wrong = losses.value_loss(values, batch["old_values"], batch["returns"], clip=self.method.value_clip)
            total += self.method.value_weight * _total(shares, wrong)
            sums |= {"value_error": _total(mask, (values - batch["returns"]) ** 2)}
        if self.balance_loss:
            total += router_loss(model.config, stats, totals["tokens"])
        return total, jax.lax.stop_gradient(sums | {"loss": total, "router": stats})

    def metrics(self, model: Maverick, sums: Sums, totals: Sums, context: Context) -> Sums:
        """`loss`, the whole of it, and see `docs/guides/alignment.md`."""
        out = {"loss": sums["loss"], "policy_loss": sums["policy_loss"]}
        names = ("entropy", "ratio_off", "clip_fraction", "kl", "sampler_kl", "reference_kl", "value_error")
        out |= {name: sums[name] / totals["written"] for name in names if name in sums}
        if self.penalty is not None:
            out |= {MULTIPLIER: context.state[MULTIPLIER], VIOLATIONS: totals[VIOLATIONS]}
        if sums["router"] is not None:
            out |= router_metrics(sums["router"], totals["tokens"], model.config.num_experts_per_tok)
        return out

    def evaluate(self, model: Maverick, batch: Batch, context: Context) -> Sums:
        """Episodes are not held out."""
        raise InputError("run.eval_every: objective.kind: policy holds no rows out; expected 0")

    # ---- parts ---------------------------------------------------------------------------------------------------

    def _measured(self, new: jax.Array, old: jax.Array, batch: Batch, mask: jax.Array) -> Sums:
        """Sums over the tokens that are learned from: how unlikely they are, how far they moved since they were
        sampled, and how far the engine's numbers are off."""
        away = self.method.clipped_away(new, old, batch)
        found = {
            "entropy": -new,
            "ratio_off": (new != old).astype(jnp.float32),
            "clip_fraction": away.astype(jnp.float32),
            "kl": losses.divergence(new, old, "k3"),
        }
        if self.rollouts.temperature == 1:
            found["sampler_kl"] = losses.divergence(old, batch["sampled_log_probs"], "k2")
        return {name: _total(mask, x) for name, x in found.items()}

    def _seen(self, model: Maverick, batch: Batch, heads: dict[str, nnx.Param]) -> tuple[jax.Array, jax.Array, Any]:
        """Log-probabilities of labels at the temperature of sampling and values, float32[b, T], and the routers'
        statistics."""
        hidden, stats = model.hidden(Inputs.of(batch))
        return *self._read(hidden, model, batch, heads), stats

    def _read(self, hidden: jax.Array, model: Maverick, batch: Batch, heads: dict) -> tuple[jax.Array, jax.Array]:
        """The first two of `_seen`, from hidden states."""
        new = self._log_probs(hidden, model.stored_output_weight(), model, batch)
        if not self.method.has_values:
            return new, jnp.zeros_like(new)
        wide = reshard(hidden, model.rules("batch", "length", None)).astype(jnp.float32)
        return new, jnp.sum(wide * heads[VALUE][...].astype(jnp.float32)[None, None, :], axis=-1)

    def _reference_log_probs(self, model: Maverick, batch: Batch, context: Context) -> jax.Array:
        reference = context.base if isinstance(self.reference, AdaptersOff) else context.references[MODEL]
        assert reference is not None, "the model without its adapters is not at hand"
        hidden, _ = reference.hidden(dataclasses.replace(Inputs.of(batch), routes=None))
        hidden = reshard(hidden, model.rules("batch", "length", None))
        head = reshard(reference.output_weight(), model.rules.compute("embed", "vocab"))
        return self._log_probs(hidden, head, model, batch)

    def _log_probs(self, hidden: jax.Array, head: Any, model: Maverick, batch: Batch) -> jax.Array:
        if (temperature := self.rollouts.temperature) != 1:
            hidden = hidden / jnp.asarray(temperature, hidden.dtype)
        return label_log_probs(hidden, head, batch["labels"], rules=model.rules, chunk=self.loss_chunk)


def _total(weights: jax.Array, values: jax.Array) -> jax.Array:
    """The weighted sum of values where weights are not 0, float32[]."""
    return jnp.sum(jnp.where(weights > 0, values * weights, 0))
