"""Weights of routed experts that are stored in shards."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from maverick_jax.ops.dispatch import routed_experts
from maverick_jax.sharding import ShardingRules

RULES = ShardingRules()


def test_gradients_are_scattered_in_the_compute_dtype_and_summed_over_replicas_in_float32(mesh_of):
    """By the program: XLA's CPU sums bfloat16 in float32 anyway, other backends do not."""
    B, T, D, F, E = 8, 2, 16, 4, 2
    with mesh_of(data=2, fsdp=2, expert=2):
        place = lambda axes, *shape: jax.device_put(np.ones(shape, np.float32), RULES(*axes))
        x = place(("batch", "length", None), B, T, D).astype(jnp.bfloat16)
        chosen = jnp.zeros((B, T, 1), jnp.int32, device=jax.typeof(x).sharding)
        w_in = place(("experts", "expert_embed", None, "expert_mlp"), E, D, 2, F)
        w_out = place(("experts", "expert_mlp", "expert_embed"), E, F, D)
        scores = jnp.ones_like(chosen, jnp.bfloat16)
        loss = lambda *w: jnp.sum(routed_experts(x, scores, chosen, *w, RULES).astype(jnp.float32))
        program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(w_in, w_out))
    found = lambda name: set(re.findall(rf":(\w+\[[\d,]*\])\S* = {name}\b", program))
    assert found("reduce_scatter") == {f"bf16[1,{D // 2},2,{F}]", f"bf16[1,{F},{D // 2}]"}
    assert found("psum_invariant") >= {f"f32[1,{D // 2},2,{F}]", f"f32[1,{F},{D // 2}]"}
    assert found("all_gather") == {f"bf16[1,{D},2,{F}]", f"bf16[1,{F},{D}]"}
