"""Learning from a teacher as well as from the text: soft and hard targets, weighted per token."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from jax.sharding import reshard
from pydantic import Field

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick, Tapped
from maverick_jax.ops.distillation import Divergence, Target, Terms, Weighed, distillation, whole_target
from maverick_jax.ops.distillation import Sums as Distilled
from maverick_jax.sharding import MeshConfig, ShardingRules
from train.objectives.base import Batch, Context, Findings, Head, Objective, Reference, State, StoredFields, Sums
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
    """A run directory, one of its checkpoints or a Hugging Face folder, of the same vocabulary. Its model is frozen.
    null: none is at hand, only what it has said (`targets`)."""
    teacher_config: Annotated[str, Field(min_length=1)] | None = None
    """A run config, by path or shipped name, that is trained first, in `teacher`, while there is no finished run of it;
    null: the teacher has to be there."""
    teacher_dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    """What the teacher's parameters are held in; keep: as they are stored."""
    teacher_rules: dict[str, str | list[str] | None] = {}
    """Overrides, for the teacher alone, of the run's sharding table (as `mesh.rules`): its own layout of the mesh."""
    targets: OfflineTargets | None = None
    """What the teacher has said of the data, on disk: training reads that and loads no teacher. null: the teacher is
    asked while training."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0: forward KL; 1: reverse KL; between: generalised Jensen-Shannon divergence (arXiv 2306.13649)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Both models' logits are divided by it in the divergence."""
    tau_squared: bool = False
    """Multiply the divergence by temperature^2, so that its gradient keeps its size."""
    weighting: AnyWeighting = Codistill()
    """How soft and hard targets are weighed against each other."""
    hidden: HiddenMatching | None = None
    """Match the outputs of chosen layers too; null: do not."""
    router: RouterMatching | None = None
    """Match the distributions of routers too; null: do not."""
    on_policy: OnPolicy | None = None
    """Some updates learn from the student's own samples, as the teacher judges them; null: none."""

    @pydantic.field_validator("teacher_rules")
    @classmethod
    def _known_axes(cls, rules):
        MeshConfig(rules=rules)
        return rules

    @pydantic.model_validator(mode="after")
    def _taught(self):
        if self.targets is None:
            if self.teacher is None:
                raise ValueError("needs a `teacher`, or `targets` that one has left")
        elif self.hidden or self.router:
            raise ValueError(f"{'hidden' if self.hidden else 'router'}: only a teacher at hand has any; expected null")
        elif self.on_policy is not None:
            raise ValueError("on_policy: only a teacher at hand judges new samples; expected targets: null")
        elif self.targets.mode == "sampled" and (self.beta or isinstance(self.weighting, Taid)):
            raise ValueError("targets.mode: sampled is of the forward KL alone (beta 0, not taid); expected tail")
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
            found.append(("objective.on_policy", "a model with an image encoder writes no samples; expected null"))
        return found + (self.on_policy.check(sequence_length) if self.on_policy else [])

    # ---- training ------------------------------------------------------------------------------------------------

    def init(self) -> State:
        return self.weighting.init()

    def totals(self, batch: Batch) -> Sums:
        """As for pretraining, and whether the batch is of the student's own samples, if such are made: 1 or 0."""
        if self.on_policy is None:
            return super().totals(batch)
        return super().totals(batch) | {ON_POLICY: jnp.any(batch["labels"] < 0).astype(jnp.int32)}

    def advance(self, state: State, metrics: Sums) -> State:
        """What the weighting remembers is of the text: an update on the student's own samples leaves it as it was."""
        new = self.weighting.advance(state, metrics)
        if self.on_policy is None:
            return new
        return jax.tree.map(lambda new, old: jnp.where(metrics[ON_POLICY] > 0, old, new), new, state)

    def loss(self, model: Maverick, batch: Batch, totals: Sums, context: Context) -> tuple[jax.Array, Sums]:
        student, target, matched = self._side_by_side(model, batch, context)
        controls = self.weighting.controls(context.step, context.state)
        controls["max_entropy"] = jnp.log(jnp.float32(model.config.vocab_size))
        sums = distillation(
            (student.hidden, model.output_weight()),
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

    def _side_by_side(self, model: Maverick, batch: Batch, context: Context) -> tuple[Tapped, Target, Sums]:
        """What the student makes of a batch, what it should make of it, and how far apart the insides of both are."""
        inputs = Inputs.of(batch)
        if self.targets is not None:
            return model.tapped(inputs), self.targets.target(batch), {}
        teacher = context.references[TEACHER]
        taps = self.matching.taps(model.config, teacher.config)
        student, theirs = model.tapped(inputs, taps[0]), teacher.tapped(inputs, taps[1])
        matched = self.matching.distances(student, theirs, context.heads, batch["loss_weights"], model.rules)
        return student, teacher_target(teacher, theirs.hidden, model.rules), matched

    def metrics(self, model: Maverick, sums: Sums, totals: Sums, context: Context) -> Sums:
        """As for pretraining, and means over tokens: `divergence`, the teacher's own loss and entropy, the weights of
        hard and soft targets and what these are made of; `hidden_loss` and `router_divergence`, where asked for;
        `on_policy`, where some updates are: whether this one is."""
        out = super().metrics(model, sums, totals, context) | _means(sums["distilled"], totals["weight"])
        out |= {name: value / totals["weight"] for name, value in sums["matched"].items()}
        if self.on_policy is not None:
            out[ON_POLICY] = totals[ON_POLICY]
        return out | self.weighting.controls(context.step, context.state)

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, model: Maverick, batch: Batch, context: Context) -> Sums:
        """As for pretraining, and, where the teacher is at hand, the divergence from it and its own loss."""
        if self.targets is not None:
            return super().evaluate(model, batch, context)
        teacher, inputs = context.references[TEACHER], Inputs.of(batch)
        sums = distillation(
            (model.hidden(inputs)[0], model.output_weight()),
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


def wanted_targets(objective: Objective, vocab_size: int) -> tuple[Distill, OfflineTargets]:
    """What is needed to make the targets that an objective reads: the objective with its teacher at hand, and what to
    keep of the teacher's answers. Raises InputError for an objective that reads none or names no teacher, for more
    tokens than there are, and for samples of a tail that does not exist."""
    if not isinstance(objective, Distill) or objective.targets is None or objective.teacher is None:
        raise InputError("data targets: expected objective: {kind: distill, teacher: ..., targets: {path: ...}}")
    wanted = objective.targets
    if wanted.top_k > vocab_size:
        raise InputError(f"objective.targets.top_k: {wanted.top_k} is more than model.vocab_size ({vocab_size})")
    if wanted.tail_samples and wanted.top_k == vocab_size:
        raise InputError(f"objective.targets.tail_samples: top_k {wanted.top_k} leaves no other tokens")
    return objective.model_copy(update={"targets": None}), wanted


def teacher_target(teacher: Maverick, hidden: jax.Array, rules: ShardingRules) -> Target:
    """The teacher's hidden states [B, T, D] and head, laid out as the student's are; no gradient."""
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
