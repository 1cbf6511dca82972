"""Compare gradients with and without offload before a run that offloads activations to the host's memory.

Copies between device and host run beside the computation. A compiler or driver that orders them wrongly would train on
wrong numbers without any sign of it, so a small model computes them both ways first.
"""

import logging
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, reshard

from maverick_jax.checkpoint.names import flatten
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.remat import HOST
from maverick_jax.model.transformer import Maverick
from maverick_jax.precision import for_platform
from maverick_jax.saved import Remat, SavedNames, lists_of
from maverick_jax.sharding import PIPELINE_AXIS, ShardingRules, size_of
from maverick_jax.target import Target

log = logging.getLogger(__name__)
KEY = "model.remat.offload"
LIMIT = 0.02
"""Of |with - without offload| / |without| of a parameter's gradient. Both programs round alike, up to the fusions that
the compiler chooses; bfloat16 rounds by at most 0.4%."""
CHUNK, LEAST = 128, 64
"""Tokens of a chunk, and the least width of a layer, of the small model."""


def check_offload(config: ModelConfig, rules: ShardingRules, mesh: Mesh, target: Target) -> None:
    """Nothing, for a model that offloads nothing. Raises InputError if the devices have no memory of the host, or if
    offload changes the gradients of a small model with layers of the same kinds on the same mesh."""
    if lists_of(config.remat).offload == SavedNames():
        return
    if HOST not in target.memories:
        raise InputError(f"{KEY}: {target.kind} has no memory {HOST}; keep the values, or have them recomputed")
    small = small_model(for_platform(config, target.platform), rules, dict(mesh.shape))
    with jax.set_mesh(mesh):
        found, expected = (gradients(model, rules) for model in (small, kept(small)))
        errors = {name: float(x) for name, x in jax.jit(relative_errors)(found, expected).items()}
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    if not errors[worst] <= LIMIT:
        raise InputError(
            f"{KEY}: in a small model on {target.count} x {target.kind}, the gradient of {worst} is off by "
            f"{errors[worst]:.2g} of its norm; expected at most {LIMIT}. Keep the values, or have them recomputed"
        )
    log.info("gradients of a small model with offload equal those without: off by at most %.1e", errors[worst])


def small_model(config: ModelConfig, rules: ShardingRules, sizes: dict[str, int]) -> ModelConfig:
    """Two periods for each stage, and the tail, of the config's layers, as narrow as a mesh of these sizes allows."""
    ways = lambda *axes: math.lcm(LEAST, *(size_of(sizes, getattr(rules, axis)) for axis in axes))
    kv = size_of(sizes, rules.kv_heads)
    return config.model_copy(
        update={
            "vocab_size": ways("vocab"),
            "hidden_size": ways("embed", "table", "residual", "expert_embed"),
            "num_hidden_layers": 2 * sizes.get(PIPELINE_AXIS, 1) * len(config.period) + len(config.tail),
            "num_attention_heads": 2 * kv,
            "num_key_value_heads": kv,
            "intermediate_size": ways("mlp", "expert_mlp"),
            "intermediate_size_mlp": ways("mlp"),
            "attention_chunk_size": config.attention_chunk_size and CHUNK,
            "vision": None,
        }
    )


def kept(config: ModelConfig) -> ModelConfig:
    """The model that keeps on the device what this one offloads."""
    lists, both = lists_of(config.remat), {}
    for kind in SavedNames.model_fields:
        both[kind] = tuple(dict.fromkeys(getattr(lists.keep, kind) + getattr(lists.offload, kind)))
    return config.model_copy(update={"remat": Remat(keep=SavedNames(**both))})


def gradients(config: ModelConfig, rules: ShardingRules) -> dict[str, jax.Array]:
    """Of a model with initial weights, by parameter, for two documents in each row of a small batch."""

    def compute():
        sizes = dict(jax.sharding.get_abstract_mesh().shape)
        rows = size_of(sizes, rules.batch) * (rules.microbatches or 1)
        shape = rows, 2 * CHUNK * size_of(sizes, rules.length)
        row, place = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
        tokens, segments = (31 * row + 17 * place) % config.vocab_size, 1 + (3 * place >= shape[1]).astype(jnp.int32)
        tokens, segments = (reshard(x, rules("batch", "length")) for x in (tokens, segments))
        inputs = Inputs(tokens, segment_ids=segments).split(rules)
        direction = jnp.cos(jnp.arange(config.hidden_size, dtype=jnp.float32))
        loss = lambda model: jnp.sum(model.hidden(inputs)[0].astype(jnp.float32) * direction[None, None])
        return flatten(jax.grad(loss)(Maverick(config, rules, rngs=nnx.Rngs(params=jax.random.key(0)))))

    return jax.jit(compute)()


def relative_errors(found: dict[str, jax.Array], expected: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """|found - expected| / |expected| by name, float32[]."""
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32))))
    error = lambda x, y: norm(x - y) / jnp.maximum(norm(y), jnp.finfo(jnp.float32).tiny)
    return {name: error(found[name], expected[name]) for name in expected}
