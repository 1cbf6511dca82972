"""Next-token prediction with the router's balance terms."""

from typing import Annotated, Literal

import jax
from pydantic import Field

from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from train.objectives.base import Batch, Context, Sums
from train.objectives.next_token import NextToken, router_loss


class Pretrain(NextToken):
    """`objective: {kind: pretrain}`."""

    kind: Literal["pretrain"] = "pretrain"
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of mean(logsumexp(logits)^2), which keeps logits from drifting (PaLM, arXiv 2204.02311)."""

    def loss(self, model: Maverick, batch: Batch, totals: Sums, context: Context) -> tuple[jax.Array, Sums]:
        hidden, stats = model.hidden(Inputs.of(batch))
        sums = self.cross_entropy(model, hidden, batch, self.z_loss)
        loss = sums.total / totals["weight"]
        loss += router_loss(model.config, stats, totals["tokens"])
        return loss, {"nll": sums.nll, "router": jax.lax.stop_gradient(stats)}
