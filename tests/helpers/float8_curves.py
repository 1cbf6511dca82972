"""Held-out losses of training with float8 products against bfloat16 ones, on the same text and initial weights. The
table of docs/results/precision.md: `python -m tests.helpers.float8_curves`.
"""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from data.rows.fields import FIELDS
from maverick_jax.config import ModelConfig
from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import ShardingRules, single_device_mesh
from tests.helpers.gradient_errors import DENSE, LENGTH, batch
from train.objectives import Pretrain
from train.objectives.base import Context

CONFIG = DENSE.model_copy(update={"hidden_size": 128, "head_dim": 32, "intermediate_size_mlp": 384})
"""Dense, because a router sends tokens elsewhere after any rounding, which hides the rounding's own effect."""
ROWS, HELD_OUT, RATE, WARMUP = 4, 32, 3e-3, 20
EVERY = 50
"""Steps between evaluations."""


def losses(config: ModelConfig, seeds: int, steps: int) -> np.ndarray:
    """Held-out losses in nats a byte [seeds, evaluations], for each seed's initial weights and order of rows."""
    rules, objective, context = ShardingRules(), Pretrain(), Context(jnp.zeros((), jnp.int32), {}, {})
    text = batch(LENGTH * (256 + HELD_OUT))
    place = lambda rows: {name: jax.device_put(x, rules(*FIELDS[name].axes)) for name, x in rows.items()}
    held = place({name: x[-HELD_OUT:] for name, x in text.items()})
    loss = lambda model, rows: objective.loss(
        model, rows, objective.totals({name: x[None] for name, x in rows.items()}), context
    )[0]
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, WARMUP, steps, RATE / 20)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, 0.9, 0.95, weight_decay=0.1))

    def step(model, state, rows):
        updates, state = optimizer.update(jax.grad(loss)(model, rows), state, model)
        return optax.apply_updates(model, updates), state

    create = jax.jit(lambda key: Maverick(config, rules, rngs=nnx.Rngs(params=key)))
    step, evaluate, found = jax.jit(step, donate_argnums=(0, 1)), jax.jit(loss), []
    for seed in range(seeds):
        order = np.random.default_rng(seed)
        model = create(jax.random.key(seed))
        state, curve = jax.jit(optimizer.init)(model), []
        for i in range(1, steps + 1):
            chosen = order.choice(256, ROWS, replace=False)
            model, state = step(model, state, place({name: x[chosen] for name, x in text.items()}))
            if i % EVERY == 0:
                curve.append(float(evaluate(model, held)))
        print(config.matmul_dtype, "seed", seed, *(f"{x:.4f}" for x in curve), flush=True)
        found.append(curve)
    return np.array(found)


if __name__ == "__main__":
    seeds, steps = (int(n) for n in sys.argv[1:]) if len(sys.argv) == 3 else (3, 300)
    with jax.set_mesh(single_device_mesh()):
        half, rounded = (
            losses(CONFIG.model_copy(update={"compute_dtype": "bfloat16", "matmul_dtype": dtype}), seeds, steps)
            for dtype in ("compute", "float8")
        )
    print("| step | bfloat16 | float8 | float8 - bfloat16 |\n|---:|---:|---:|---:|")
    for i in range(half.shape[1]):
        more = rounded[:, i] - half[:, i]
        error = more.std(ddof=1) / len(more) ** 0.5
        means = f"{half[:, i].mean():.4f} | {rounded[:, i].mean():.4f}"
        print(f"| {(i + 1) * EVERY} | {means} | {more.mean():+.4f} ± {error:.4f} |")
