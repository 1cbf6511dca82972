"""Measures how much a model uses each routed expert on given rows, and picks the most used experts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, reshard

from maverick_jax.model.inputs import Inputs
from maverick_jax.model.layers import Taps
from maverick_jax.model.transformer import Maverick
from train.batches import Feed


def measure(model: Maverick, feed: Feed, steps: int) -> dict[str, Any]:
    """Use of experts over the first `steps` batches: `tokens`, the number of tokens without padding, and two arrays
    float64[layers, E]. `token` is the fraction of a layer's assignments that go to each expert (token selection ratio).
    `gate` is each expert's fraction of the layer's gate values, where a gate counts only if its expert is chosen
    (average gate score, normalized)."""
    program, totals, tokens = jax.jit(_sums), None, 0
    with feed.batches(0, steps) as batches:
        for batch in batches:
            *sums, real = jax.device_get(program(model, batch))
            sums = np.asarray(sums, np.float64)
            totals = sums if totals is None else totals + sums
            tokens += int(real)
    assert totals is not None
    whole = totals.sum(axis=-1, keepdims=True)
    gate, token = totals / np.where(whole == 0, 1, whole)
    return {"gate": gate, "token": token, "tokens": tokens}


def _sums(model: Maverick, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums of gate values and numbers of assignments, float32[layers, E], and the number of tokens without padding,
    int32[], in a batch of arrays [A, b, T]."""
    gates, counts = jax.lax.map(functools.partial(_uses, model), batch)
    return jnp.sum(gates, axis=0), jnp.sum(counts, axis=0), jnp.sum(batch["segment_ids"] > 0, dtype=jnp.int32)


def _uses(model: Maverick, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Sums of gate values and numbers of assignments, float32[layers, E], in one microbatch of arrays [b, T]."""
    layers = model.config.moe_layers
    number = jnp.arange(model.config.num_local_experts, dtype=jnp.int32)[None, None, :]
    found = []
    moe_layers = [model.layer(i) for i in layers]
    seen = model.tapped(Inputs.of(batch), Taps(router=layers))
    for layer, logits in zip(moe_layers, seen.routers, strict=True):
        real = reshard(batch["segment_ids"] > 0, PartitionSpec(*jax.typeof(logits).sharding.spec[:2]))[..., None]
        chosen = [(expert[..., None] == number) & real for expert in layer.moe.choose(logits)]
        assigned = sum(one.astype(jnp.float32) for one in chosen)
        found.append([jnp.sum(x, axis=(0, 1)) for x in (assigned * layer.moe.gates(logits), assigned)])
    gates, counts = zip(*found, strict=True)
    return jnp.stack(gates), jnp.stack(counts)


def pick(parts: np.ndarray, share: float) -> list[int]:
    """The smallest set of experts, ascending, whose `parts` [E], which sum to 1, reach `share`; ties go to the lower
    index."""
    order = np.argsort(-parts, kind="stable")
    reached = np.cumsum(parts[order]) >= share - 1e-9
    return sorted(order[: int(np.argmax(reached)) + 1 if reached.any() else len(order)].tolist())
