"""The train step: loss, gradient, update, metrics. A pure function of (state, batch), and its compiled program."""

import dataclasses
import functools
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from data.rows.fields import TILES
from maverick_jax.model.balance import move_router_bias
from maverick_jax.model.loops import loop_draws
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.rounding import stochastic_round
from train.compilation import return_freed_memory
from train.faults.spikes import judged
from train.goodput import timeline
from train.objectives.base import Context, Objective
from train.optimizers.base import Optimizer, Rates
from train.optimizers.schedule import RATE
from train.state import TrainState, add_tokens
from train.trainable.selection import ADAPTER_NOISE, Trained


def train_step(
    state: TrainState,
    batch: dict,
    references: dict[str, Maverick],
    rates: Rates | None = None,
    *,
    objective: Objective,
    optimizer: Optimizer,
) -> tuple[TrainState, dict]:
    """One update from a batch of arrays [A, b, ...] and the frozen models the objective asks for. Metrics are device
    values. `rates`: of this update; None: computed here, so that they become a part of the program.

    A step whose loss or gradient norm is not finite, or that the state's gate finds to be a spike, leaves model and
    optimizer as they were and counts in `skipped`.
    """
    totals = objective.totals(batch)
    context = Context(state.step, state.objective, references, base=state.model)
    rates = optimizer.rates(state.step, state.skipped) if rates is None else rates
    chosen = optimizer.selection
    trained = chosen.select(state.model, state.heads)
    count = len(batch["tokens"])
    batch = batch | chosen.noise(state.step, count) | loop_draws(state.model.config, state.step, count)

    def loss(trained, microbatch, totals):
        model, heads = chosen.with_overlays(trained, state.model, state.heads, microbatch.get(ADAPTER_NOISE))
        return objective.loss(model, microbatch, totals, dataclasses.replace(context, heads=heads))

    totals |= objective.survey(chosen.with_overlays(trained, state.model, state.heads)[0], batch, context)
    sums, grads = accumulate(loss, trained, batch, totals)
    grad_norm = optax.tree.norm(grads)
    metrics = objective.metrics(state.model, sums, totals, context)
    good, gate, of_gate = judged(state.gate, metrics["loss"], grad_norm)

    updates, opt_state = optimizer.transform.update(grads, state.opt_state, trained, rates=rates)
    if_good = functools.partial(jax.tree.map, lambda new, old: jnp.where(good, new, old))
    new = apply_updates(trained, updates, state.step), opt_state, objective.advance(state.objective, metrics)
    trained, opt_state, carried = if_good(new, (trained, state.opt_state, state.objective))
    model, heads = chosen.put(trained, state.model, state.heads)
    if "router" in chosen.roles:
        model = if_good(move_router_bias(model, sums["router"]), model)

    skipped = state.skipped + (~good).astype(jnp.int32)
    tokens = add_tokens(state.tokens, totals["tokens"])
    learning_rates = {name: rate for name, rate in rates.items() if name.startswith(RATE)}
    metrics |= {"grad_norm": grad_norm, **learning_rates, "skipped": skipped, "tokens": tokens, **of_gate}
    return TrainState(state.step + 1, skipped, tokens, model, opt_state, carried, heads, gate), metrics


def compile_step(
    state: TrainState, batch: dict, objective: Objective, optimizer: Optimizer, references: dict[str, Maverick]
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """`train_step` compiled ahead of time for states and batches like these (arrays, or their shapes), with the frozen
    models `references`. It donates its state. A batch with another number of tiles a row gets a program of its own when
    it first comes; a batch of another shape is an error, never one more compilation.

    The rates are arguments, computed by a small program of their own: runs that differ only in their learning rates,
    schedule, length or weight decay share one large program."""
    programs: dict[int, Callable] = {}

    def program_of(state, batch) -> Callable:
        tiles = batch[TILES].shape[2] if TILES in batch else 0
        if tiles not in programs:
            with timeline.phase("compile"):
                rates, lowered = lower_step(state, batch, objective, optimizer, references)
                program = lowered.compile()
                return_freed_memory()
            programs[tiles] = lambda state, batch: program(state, batch, references, rates(state.step, state.skipped))
        return programs[tiles]

    program_of(state, batch)
    return lambda state, batch: program_of(state, batch)(state, batch)


def lower_step(
    state: TrainState, batch: dict, objective: Objective, optimizer: Optimizer, references: dict[str, Maverick]
) -> tuple[jax.stages.Compiled, jax.stages.Lowered]:
    """The compiled program of the rates, and that of the step before it is compiled; arguments as of `compile_step`."""
    rates = jax.jit(optimizer.rates).lower(state.step, state.skipped).compile()
    like = jax.tree.map(lambda where: jax.ShapeDtypeStruct((), jnp.float32, sharding=where), rates.output_shardings)
    step = functools.partial(train_step, objective=objective, optimizer=optimizer)
    return rates, jax.jit(step, donate_argnums=0).lower(state, batch, references, like)


def apply_updates(trained: Trained, updates: Trained, step: jax.Array) -> Trained:
    """The parameters plus the float32 updates. A bfloat16 parameter is rounded stochastically, by noise that depends on
    the step and the parameter's name."""

    def updated(name: str, x: jax.Array) -> jax.Array:
        new = x.astype(jnp.float32) + updates[name].astype(jnp.float32)
        if x.dtype != jnp.bfloat16:
            return new.astype(x.dtype)
        key = jax.random.fold_in(jax.random.key(zlib.crc32(name.encode())), step)
        return stochastic_round(new, key)

    return {name: updated(name, x) for name, x in trained.items()}


def accumulate(loss: Callable, trained: Trained, batch: dict, totals: dict) -> tuple[dict, Trained]:
    """Sums of `loss` and float32 gradients over the microbatches, leading axis A of the batch."""

    def gradient(microbatch):
        (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(trained, microbatch, totals)
        return sums, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    micro = lambda i: jax.tree.map(lambda x: x[i], batch)
    if len(jax.tree.leaves(batch)[0]) == 1:
        return gradient(micro(0))
    zeros = lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding and x.sharding.spec)
    start = jax.tree.map(zeros, jax.eval_shape(gradient, micro(0)))
    return jax.lax.scan(lambda total, mb: (jax.tree.map(jnp.add, total, gradient(mb)), None), start, batch)[0]


def eval_step(model: Maverick, batch: dict, context: Context, *, objective: Objective) -> dict:
    """Held-out sums over a batch of arrays [A, b, ...]."""
    evaluate = lambda microbatch: objective.evaluate(model, microbatch, context)
    return jax.tree.map(functools.partial(jnp.sum, axis=0), jax.lax.map(evaluate, batch))
