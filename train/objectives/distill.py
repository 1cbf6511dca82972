"""Learning from a teacher as well as from the text: soft and hard targets, weighted per token."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from pydantic import Field

from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.distillation import Divergence, Terms, distillation
from maverick_jax.section import Section
from train.objectives.next_token import Batch, Context, NextToken, Sums, hidden_states, router_loss

TEACHER = "teacher"


class Schedule(Section):
    """The share alpha of the soft target, by the step alone: alpha * divergence + (1 - alpha) * cross-entropy."""

    kind: Literal["schedule"] = "schedule"
    shape: Literal["constant", "linear", "cosine", "step"] = "constant"
    """From `start` to `end` over `steps` updates: along a line, half a cosine, or at once after them; or `start` all
    the time."""
    start: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share before the first update."""
    end: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share after the last of `steps`; null for `constant`."""
    steps: Annotated[int, Field(ge=1)] = 1000
    """Updates over which the share changes."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if (self.end is None) != (self.shape == "constant"):
            raise ValueError(f"shape {self.shape} {'has no' if self.shape == 'constant' else 'needs an'} end")
        return self

    def share(self, step: jax.Array) -> jax.Array:
        """alpha, float32[], when `step` updates are done."""
        part = jnp.minimum(step.astype(jnp.float32) / self.steps, 1.0)
        if self.end is None:
            return jnp.full_like(part, self.start)
        if self.shape == "cosine":
            part = 0.5 - 0.5 * jnp.cos(jnp.pi * part)
        elif self.shape == "step":
            part = jnp.floor(part)
        return self.start + (self.end - self.start) * part


class Distill(NextToken):
    """`objective: {kind: distill, teacher: ...}`: per token, alpha * divergence(teacher, student) + (1 - alpha) *
    cross-entropy with the label (Hinton et al., arXiv 1503.02531), and the student's balance terms."""

    kind: Literal["distill"] = "distill"
    teacher: Annotated[str, Field(min_length=1)]
    """A run directory, one of its checkpoints or a Hugging Face folder, of the same vocabulary. Its model is frozen."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0: forward KL; 1: reverse KL; between: generalised Jensen-Shannon divergence (arXiv 2306.13649)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Both models' logits are divided by it in the divergence."""
    tau_squared: bool = False
    """Multiply the divergence by temperature^2, so that its gradient keeps its size."""
    weighting: Schedule = Schedule()
    """How soft and hard targets are weighed against each other."""

    def references(self) -> dict[str, str]:
        return {TEACHER: self.teacher}

    def loss(self, model: Maverick, batch: Batch, totals: Sums, context: Context) -> tuple[jax.Array, Sums]:
        teacher = context.references[TEACHER]
        hidden, stats = hidden_states(model, batch)
        theirs = jax.lax.stop_gradient(hidden_states(teacher, batch)[0])
        sums = distillation(
            (hidden, model.output_weight()),
            (theirs, teacher.output_weight()),
            batch["labels"],
            batch["loss_weights"],
            {"share": self.weighting.share(context.step)},
            weigh=_shared,
            divergence=Divergence(self.beta, self.temperature, self.tau_squared),
            rules=model.rules,
            chunk=self.loss_chunk,
        )
        loss = sums.total / totals["weight"]
        if stats is not None:
            loss += router_loss(model.config.balance, stats, totals["tokens"], model.config.num_moe_layers)
        found = {"terms": sums.terms, "hard": sums.hard, "soft": sums.soft, "nll": sums.terms.nll, "router": stats}
        return loss, jax.lax.stop_gradient(found)

    def metrics(self, model: Maverick, sums: Sums, totals: Sums, context: Context) -> Sums:
        """As for pretraining, and means over tokens: `divergence`, the teacher's own loss and entropy, and the weights
        of hard and soft targets."""
        out, terms = super().metrics(model, sums, totals, context), sums["terms"]
        named = {
            "divergence": terms.divergence,
            "teacher_loss": terms.teacher_nll,
            "teacher_entropy": terms.teacher_entropy,
            "hard_weight": sums["hard"],
            "soft_weight": sums["soft"],
        }
        return out | {name: value / totals["weight"] for name, value in named.items()}


def _shared(terms: Terms, weights: jax.Array, controls: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return (1 - controls["share"]) * weights, controls["share"] * weights
