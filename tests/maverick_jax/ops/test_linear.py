"""Linear maps whose weight is split over devices, against products whose gradients JAX derives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maverick_jax.model.remat import remat
from maverick_jax.ops.linear import gated_linear, gated_linear_reference, linear, linear_reference
from maverick_jax.saved import PRESETS, saved
from maverick_jax.sharding import ShardingRules
from tests.helpers.collectives import collectives

RULES = ShardingRules()
MESHES = [
    {"data": 1},
    {"fsdp": 8},
    {"expert": 4, "data": 2},
    {"fsdp": 2, "expert": 4},
    {"fsdp": 2, "expert": 2, "tensor": 2},
    {"data": 2, "tensor": 4},
]
B, T, D, F, N, H = 8, 3, 16, 24, 4, 2


def random(spec, *shape, seed=0, dtype=np.float32):
    return jax.device_put(jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype), spec)


def tokens(width, axis=None, seed=0):
    return random(RULES("batch", "length", axis), B, T, width, seed=seed)


def gradients(f, *args):
    """The result of f and its gradients, each of them with the sharding of its argument."""
    scored = lambda *args: jnp.sum(jnp.sin(f(*args)))
    grads = jax.jit(jax.grad(scored, argnums=tuple(range(len(args)))))(*args)
    assert [jax.typeof(g).sharding.spec for g in grads] == [jax.typeof(a).sharding.spec for a in args]
    return jax.jit(f)(*args), *grads


def check_close(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_linear_equals_its_reference(sizes, mesh_of):
    """A weight from the residual stream, and one to it whose input has two axes."""
    with mesh_of(**sizes):
        whole = RULES("batch", "length", None)
        x, w = tokens(D), random(RULES("embed", "mlp"), D, F, seed=1)
        use = RULES.compute("embed", "mlp")
        check_close(*(gradients(lambda x, w, f=f: f(x, w, use), x, w) for f in (linear, linear_reference)))
        x = random(RULES("batch", "length", "heads", None), B, T, N, H)
        w, use = random(RULES("heads", None, "embed"), N, H, D, seed=1), RULES.compute("heads", None, "embed")
        apply = lambda f: lambda x, w: f(x, w, use, inputs=2, out=whole)
        check_close(*(gradients(apply(f), x, w) for f in (linear, linear_reference)))


def test_a_weight_from_outside_the_mesh_is_placed(mesh_of):
    w, use = jnp.asarray(np.random.default_rng(1).normal(size=(D, F)), jnp.float32), RULES.compute("embed", "mlp")
    assert jax.typeof(w).sharding.mesh.empty
    with mesh_of(fsdp=4, tensor=2):
        x, grad = tokens(D), lambda f: jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w, use))), argnums=(0, 1)))
        check_close(*(grad(f)(x, w) for f in (linear, linear_reference)))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_gated_linear_equals_its_reference(sizes, mesh_of):
    with mesh_of(**sizes):
        args = tokens(F, "mlp"), tokens(F, "mlp", seed=1), random(RULES("mlp", "embed"), F, D, seed=2)
        use, out = RULES.compute("mlp", "embed"), RULES("batch", "length", None)
        apply = lambda f: lambda *args: f(*args, use, out=out)
        check_close(*(gradients(apply(f), *args) for f in (gated_linear, gated_linear_reference)))


RARE = {
    "batch over data alone": ShardingRules(batch=("data",)),
    "storage over tensor": ShardingRules(embed=("tensor", "fsdp"), mlp=None),
    "storage in another order": ShardingRules(embed=("expert", "data")),
    "residual stream split": ShardingRules(residual="tensor", mlp=None),
    "rows split": ShardingRules(batch=("data", "fsdp"), length="expert"),
}


@pytest.mark.parametrize("rules", RARE.values(), ids=RARE)
def test_linear_equals_its_reference_for_other_rules(rules, mesh_of):
    with mesh_of(data=2, fsdp=2, expert=2):
        x = random(rules("batch", "length", None), B, 4, D)
        w, use = random(rules("embed", "mlp"), D, F, seed=1), rules.compute("embed", "mlp")
        check_close(*(gradients(lambda x, w, f=f: f(x, w, use), x, w) for f in (linear, linear_reference)))
        w, use = random(rules("mlp", "embed"), D, D, seed=1), rules.compute("mlp", "embed")
        out = rules("batch", "length", "residual")
        check_close(*(gradients(lambda x, w, f=f: f(x, w, use, out=out), x, w) for f in (linear, linear_reference)))


def test_one_device_exchanges_nothing(mesh_of):
    with mesh_of(data=1):
        x, w = tokens(D), random(RULES("embed", "mlp"), D, F, seed=1)
        f = jax.grad(lambda x, w: jnp.sum(linear(x, w, RULES.compute("embed", "mlp"))), argnums=(0, 1))
        program = str(jax.make_jaxpr(f)(x, w))
    assert "dot_general" in program and "psum" not in program and "reduce_scatter" not in program


def test_gradients_are_scattered_in_the_compute_dtype_and_summed_over_replicas_in_float32(mesh_of):
    """By the program: XLA's CPU sums bfloat16 in float32 anyway, other backends do not."""
    with mesh_of(data=2, fsdp=2, expert=2):
        x, w = tokens(D).astype(jnp.bfloat16), random(RULES("embed", "mlp"), D, F, seed=1)
        f = lambda w: jnp.sum(linear(x, w, RULES.compute("embed", "mlp")).astype(jnp.float32))
        program = str(jax.make_jaxpr(jax.grad(f))(w))
    lines = lambda name: [line for line in program.splitlines() if re.search(rf"= {name}\b", line)]
    assert [re.findall(r":(\w+\[[\d,]*\])", line)[0] for line in lines("reduce_scatter")] == [f"bf16[{D // 4},{F}]"]
    assert [re.findall(r":(\w+\[[\d,]*\])", line)[0] for line in lines("psum_invariant")] == [f"f32[{D // 4},{F}]"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_scan_over_stacked_weights_gathers_twice_and_scatters_once(preset, mesh_of):
    """No policy saves a gathered weight, and the backward pass uses the one that the recomputation gathers."""
    with mesh_of(fsdp=2, expert=4):
        x, stack = tokens(D), random(P(None, *RULES("embed", "residual")), 3, D, D, seed=1)
        use = RULES.compute("embed", "residual")

        def loss(f, x, stack):
            layer = remat(lambda x, w: jnp.sin(f(x, w, use)), saved(preset, ["all_layers"]))
            return jnp.sum(jax.lax.scan(lambda x, w: (layer(x, w), None), x, stack)[0])

        grad = lambda f: jax.jit(jax.grad(functools.partial(loss, f), argnums=(0, 1)))
        check_close(*(grad(f)(x, stack) for f in (linear, linear_reference)))
        compiled = grad(linear).lower(x, stack).compile().as_text()
    assert collectives(compiled, "reduce-scatter") == [f"{D // 8},{D}"]
    assert collectives(compiled, "all-gather") == [f"{D},{D}"] * 2
    assert f"{D},{D}" not in collectives(compiled, "all-reduce")
