"""The train step: loss, gradient, update, metrics. A pure function of (state, batch)."""

import functools

import jax
import jax.numpy as jnp
import optax

from maverick_jax.model.balance import move_router_bias
from maverick_jax.model.transformer import Maverick
from train.objectives import Objective
from train.state import TrainState, add_tokens


def train_step(
    state: TrainState, batch: dict, *, objective: Objective, optimizer: optax.GradientTransformation, schedule
) -> tuple[TrainState, dict]:
    """One update from a batch of arrays [A, b, T]. Metrics are device values.

    A step whose loss or gradient norm is not finite leaves model and optimizer as they were and counts in `skipped`.
    """
    totals = objective.totals(batch)
    sums, grads = accumulate(objective, state.model, batch, totals)
    grad_norm = optax.tree.norm(grads)
    metrics = objective.metrics(state.model, sums, totals)
    good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.model)
    model = move_router_bias(optax.apply_updates(state.model, updates), sums["router"])
    if_good = functools.partial(jax.tree.map, lambda new, old: jnp.where(good, new, old))

    skipped = state.skipped + (~good).astype(jnp.int32)
    tokens = add_tokens(state.tokens, totals["tokens"])
    rate = schedule(state.step - state.skipped)
    metrics |= {"grad_norm": grad_norm, "learning_rate": rate, "skipped": skipped, "tokens": tokens}
    model, opt_state = if_good(model, state.model), if_good(opt_state, state.opt_state)
    return TrainState(state.step + 1, skipped, tokens, model, opt_state), metrics


def accumulate(objective: Objective, model: Maverick, batch: dict, totals: dict) -> tuple[dict, Maverick]:
    """Sums and gradients over the microbatches, leading axis A of the batch."""

    def gradient(microbatch):
        (_, sums), grads = jax.value_and_grad(objective.loss, has_aux=True)(model, microbatch, totals)
        return sums, grads

    micro = lambda i: jax.tree.map(lambda x: x[i], batch)
    if len(batch["tokens"]) == 1:
        return gradient(micro(0))
    zeros = lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding and x.sharding.spec)
    start = jax.tree.map(zeros, jax.eval_shape(gradient, micro(0)))
    return jax.lax.scan(lambda total, mb: (jax.tree.map(jnp.add, total, gradient(mb)), None), start, batch)[0]


def eval_step(model: Maverick, batch: dict, *, objective: Objective) -> dict:
    """Held-out sums over a batch of arrays [A, b, T]."""
    return jax.tree.map(jnp.sum, jax.lax.map(lambda microbatch: objective.evaluate(model, microbatch), batch))
