"""Linear maps whose weight is split over devices, against products whose gradients JAX derives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maverick_jax.ops.linear import gated_linear, gated_linear_reference, linear, linear_reference
from maverick_jax.sharding import ShardingRules

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
