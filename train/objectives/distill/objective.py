"""Distillation: learning from a teacher's distribution (soft targets) and from labels (hard targets), weighted per
token."""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import pydantic
from jax.sharding import reshard
from pydantic import Field

from maverick_jax.config import ModelConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick, Tapped
from maverick_jax.ops.distillation import Divergence, SoftTarget, Terms, Weighed, distillation, whole_target
from maverick_jax.ops.distillation import Sums as Distilled
from maverick_jax.sharding import MeshConfig, ShardingRules
from train.objectives.base import (
    Batch,
    Context,
    Findings,
    Head,
    Notice,
    Reference,
    State,
    StoredFields,
    Sums,
    ToStore,
)
from train.objectives.distill import notices
from train.objectives.distill.matching import HiddenMatching, Matching, RouterMatching
from train.objectives.distill.stored import OfflineTargets
from train.objectives.distill.weighting import AnyWeighting, Codistill, Taid
from train.objectives.next_token import NextToken, router_loss
from train.rollouts.on_policy import OnPolicy

TEACHER, ON_POLICY = "teacher", "on_policy"


class Distill(NextToken):
    """`objective: {kind: distill, teacher: ...}`: per token, hard * cross-entropy with the label + soft *
    divergence(teacher, student) (Hinton et al., arXiv 1503.02531), and the student's balance terms."""

    kind: Literal["distill"] = "distill"
    teacher: Annotated[str, Field(min_length=1)] | None = None
    """The teacher: a run directory, one of its checkpoints or a Hugging Face folder, with the same vocabulary. It is
    frozen. null: no teacher is loaded, only stored `targets` are read."""
    teacher_config: Annotated[str, Field(min_length=1)] | None = None
    """A run config (path or shipped name) that is trained first, in the directory `teacher`, unless that contains its
    finished run; null: the teacher must exist."""
    teacher_dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    """Dtype of the teacher's parameters in memory; keep: as stored."""
    teacher_rules: dict[str, str | list[str] | None] = {}
    """Overrides of the run's sharding table (as `mesh.rules`) that apply only to the teacher."""
    targets: OfflineTargets | None = None
    """Stored targets: training reads them and loads no teacher. null: the teacher runs during training."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The divergence. 0: forward KL; 1: reverse KL; between: generalized Jensen-Shannon divergence (arXiv
    2306.13649)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides both models' logits in the divergence."""
    tau_squared: bool = False
    """Whether the divergence is multiplied by temperature^2, so that its gradient keeps its size at any temperature."""
    weighting: AnyWeighting = Codistill()
    """Weights of soft and hard targets."""
    hidden: HiddenMatching | None = None
    """Also match outputs of chosen layers; null: do not."""
    router: RouterMatching | None = None
    """Also match distributions of routers; null: do not."""
    on_policy: OnPolicy | None = None
    """Train some updates on the student's own samples with the teacher's distribution as the target; null: none."""

    @pydantic.field_validator("teacher_rules")
    @classmethod
    def _known_axes(cls, rules):
        MeshConfig(rules=rules)
        return rules

    @pydantic.model_validator(mode="after")
    def _taught(self):
        if self.targets is None:
            if self.teacher is None:
                raise ValueError("set `teacher`, or `targets` (stored teacher outputs)")
        elif self.hidden or self.router:
            raise ValueError(f"{'hidden' if self.hidden else 'router'}: stored targets contain none; expected null")
        elif self.on_policy is not None:
            raise ValueError("on_policy: stored targets cannot score new samples; expected targets: null")
        elif self.targets.mode == "sampled" and (self.beta or isinstance(self.weighting, Taid)):
            raise ValueError("targets.mode: sampled supports only the forward KL (beta 0, not taid); expected tail")
        return self

    @property
    def divergence(self) -> Divergence:
        return Divergence(self.beta, self.temperature, self.tau_squared)

    def references(self) -> dict[str, Reference]:
        return self.same_tokens_as() if self.targets is None else {}

    def same_tokens_as(self) -> dict[str, Reference]:
        """The teacher, also where only its stored targets are read."""
        if self.teacher is None:
            return {}
        return {TEACHER: Reference(self.teacher, self.teacher_dtype, self.teacher_rules, self.teacher_config)}

    def fields(self) -> tuple[str, ...]:
        return super().fields() + (self.targets.fields if self.targets is not None else ())

    def stored_fields(self) -> StoredFields | None:
        if self.targets is None:
            return None
        header = {"temperature": ("objective.temperature", self.divergence.temperature), **self.targets.header}
        return StoredFields(self.targets.path, self.targets.fields, header, self.teacher)

    def to_store(self) -> ToStore | None:
        if self.targets is None or self.teacher is None:
            return None
        live = self.model_copy(update={"targets": None})
        return ToStore(live, TEACHER, self.targets, self.divergence.temperature)

    @property
    def matching(self) -> Matching:
        return Matching(self.hidden, self.router)

    def check_references(self, model: ModelConfig, references: dict[str, ModelConfig]) -> Findings:
        return self.matching.check(model, references[TEACHER]) if TEACHER in references else []

    def heads(self, model: ModelConfig, references: dict[str, ModelConfig]) -> tuple[Head, ...]:
        return self.matching.heads(model, references[TEACHER]) if TEACHER in references else ()

    def pinned(self) -> dict[str, str]:
        projected = self.hidden.layers if self.hidden and self.hidden.projection else ()
        kept = {"weighting.kind": self.weighting.kind, "hidden.layers (with projections)": str([*map(list, projected)])}
        return {**super().pinned(), **kept}

    def batch_maker(self) -> OnPolicy | None:
        return self.on_policy

    def check_model(self, model: ModelConfig, sequence_length: int) -> Findings:
        found = super().check_model(model, sequence_length)
        if self.on_policy and model.vision:
            found.append(
                ("objective.on_policy", "a model with an image encoder cannot generate samples; expected null")
            )
        return found + (self.on_policy.check(sequence_length) if self.on_policy else [])

    # ---- training ------------------------------------------------------------------------------------------------

    def init(self) -> State:
        return self.weighting.init()

    def totals(self, batch: Batch) -> Sums:
        """As for pretraining; with on-policy updates also whether the batch contains the student's own samples, 1 or
        0."""
        if self.on_policy is None:
            return super().totals(batch)
        return super().totals(batch) | {ON_POLICY: jnp.any(batch["labels"] < 0).astype(jnp.int32)}

    def advance(self, state: State, metrics: Sums) -> State:
        """Updates the weighting's state, except on the student's own samples, since its averages describe the text."""
        new = self.weighting.advance(state, metrics)
        if self.on_policy is None:
            return new
        return jax.tree.map(lambda new, old: jnp.where(metrics[ON_POLICY] > 0, old, new), new, state)

    def loss(self, model: Maverick, batch: Batch, totals: Sums, context: Context) -> tuple[jax.Array, Sums]:
        student, target, matched = self._side_by_side(model, batch, context)
        controls = self.weighting.controls(context.step, context.state)
        controls["max_entropy"] = jnp.log(jnp.float32(model.config.vocab_size))
        sums = distillation(
            (student.hidden, model.stored_output_weight()),
            target,
            batch["labels"],
            batch["loss_weights"],
            controls,
            weigh=self.weighting.weigh,
            divergence=self.divergence,
            rules=model.rules,
            chunk=self.loss_chunk,
        )
        loss = sums.total / totals["weight"]
        for name, share in self.matching.weights().items():
            loss += share * matched[name] / totals["weight"]
        loss += router_loss(model.config, student.stats, totals["tokens"])
        found = {"distilled": sums, "matched": matched, "nll": sums.terms.nll, "router": student.stats}
        return loss, jax.lax.stop_gradient(found)

    def _side_by_side(self, model: Maverick, batch: Batch, context: Context) -> tuple[Tapped, SoftTarget, Sums]:
        """The student's outputs for a batch, its targets, and the distances between the internals of both models."""
        inputs = Inputs.of(batch)
        if self.targets is not None:
            return model.tapped(inputs), self.targets.target(batch), {}
        teacher = context.references[TEACHER]
        taps = self.matching.taps(model.config, teacher.config)
        own_loops = dataclasses.replace(inputs, loops=None)  # the draw is for the student's periods
        student, theirs = model.tapped(inputs, taps[0]), teacher.tapped(own_loops, taps[1])
        matched = self.matching.distances(student, theirs, context.heads, batch["loss_weights"], model.rules)
        return student, teacher_target(teacher, theirs.hidden, model.rules), matched

    def metrics(self, model: Maverick, sums: Sums, totals: Sums, context: Context) -> Sums:
        """As for pretraining, with means over tokens: `divergence`; the teacher's loss and entropy; the weights of hard
        and soft targets and their parts; `hidden_loss` and `router_divergence` if configured. With on-policy updates
        also `on_policy`: whether this update is one."""
        out = super().metrics(model, sums, totals, context) | _means(sums["distilled"], totals["weight"])
        out |= {name: value / totals["weight"] for name, value in sums["matched"].items()}
        if self.on_policy is not None:
            out[ON_POLICY] = totals[ON_POLICY]
        return out | self.weighting.controls(context.step, context.state)

    def notices(self, metrics: dict[str, Any]) -> dict[str, Notice]:
        """Whether soft targets weigh almost nothing; undecided by an update on the student's own samples."""
        return {} if metrics.get(ON_POLICY) else notices.of_update(self.weighting, metrics)

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, model: Maverick, batch: Batch, context: Context) -> Sums:
        """As for pretraining; if the teacher is loaded, also the divergence from it and its loss."""
        if self.targets is not None:
            return super().evaluate(model, batch, context)
        teacher, inputs = context.references[TEACHER], Inputs.of(batch)
        sums = distillation(
            (model.hidden(inputs)[0], model.stored_output_weight()),
            teacher_target(teacher, teacher.hidden(inputs)[0], model.rules),
            batch["labels"],
            batch["loss_weights"],
            {},
            weigh=_measured,
            divergence=self.divergence,
            rules=model.rules,
            chunk=self.loss_chunk,
        )
        named = {"loss": sums.terms.nll, "divergence": sums.terms.divergence, "teacher_loss": sums.terms.teacher_nll}
        return {**named, "weight": jnp.sum(batch["loss_weights"])}

    def remarks(self, found: dict[str, Any], state: dict[str, float]) -> list[str]:
        return notices.of_evaluation(self.weighting, found, state)


def teacher_target(teacher: Maverick, hidden: jax.Array, rules: ShardingRules) -> SoftTarget:
    """The target from the teacher's hidden states [B, T, D] and output matrix, sharded like the student's; no
    gradient."""
    head = reshard(teacher.output_weight(), rules.compute("embed", "vocab"))
    pair = reshard(hidden, rules("batch", "length", None)), head
    return whole_target(*jax.lax.stop_gradient(pair))


def _measured(terms: Terms, weights: jax.Array, controls: dict[str, jax.Array]) -> Weighed:
    return Weighed(0 * weights, 0 * weights, {})


def _means(sums: Distilled, weight: jax.Array) -> Sums:
    """Means over tokens, by their names as metrics."""
    terms, weighed = sums.terms, sums.weighed
    named = {
        "loss": terms.nll,
        "divergence": terms.divergence,
        "teacher_loss": terms.teacher_nll,
        "teacher_entropy": terms.teacher_entropy,
        "hard_weight": weighed.hard,
        "soft_weight": weighed.soft,
        **terms.extra,
        **weighed.parts,
    }
    return {name: value / weight for name, value in named.items()}
