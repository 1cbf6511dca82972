"""Products with float8 operands against their twin, on one device and many, and by the program that is compiled."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from maverick_jax import Maverick
from maverick_jax.accounting.topologies import topology
from maverick_jax.model.inputs import Inputs
from maverick_jax.ops import dot as module
from maverick_jax.ops.float8 import COTANGENT, OPERAND, linear_of_rounded, scaled_dot, scaled_to
from maverick_jax.ops.linear import gated_linear, linear
from maverick_jax.sharding import ShardingRules, make_mesh, single_device_mesh
from tests.helpers import tiny
from tests.maverick_jax.ops.test_linear import MESHES, B, D, F, T, check_close, random, tokens

RULES = ShardingRules()


def in_float8(f, *args, cotangent, **options):
    """The result of f and, for a cotangent of the result, the gradients of its arguments."""
    result, vjp = jax.vjp(lambda *args: f(*args, float8=True, **options), *args)
    return result, *vjp(cotangent)


def flat(x):
    return np.asarray(x, np.float32).reshape(-1, x.shape[-1])


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_linear_equals_its_twin(dtype):
    x, w = (jnp.asarray(np.random.default_rng(i).normal(size=s), dtype) for i, s in enumerate([(B, T, D), (D, F)]))
    dy = jnp.asarray(np.random.default_rng(2).standard_t(2, size=(B, T, F)) * 1e-3, dtype)
    found = jax.jit(lambda *args: in_float8(linear, *args[:2], cotangent=args[2]))(x, w, dy)
    expected = linear_of_rounded(flat(x), flat(w), flat(dy))
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == dtype
        step = 2**-8 if dtype == jnp.bfloat16 else 1e-6  # results are rounded once
        np.testing.assert_allclose(flat(got), wanted, rtol=step, atol=step * np.abs(wanted).max() * 0.1)


def test_gated_linear_equals_its_twin():
    gate, up, dy = (
        jnp.asarray(np.random.default_rng(i).normal(size=(B, T, n)), jnp.float32) for i, n in enumerate((F, F, D))
    )
    down = jnp.asarray(np.random.default_rng(3).normal(size=(F, D)), jnp.float32)
    found = in_float8(gated_linear, gate, up, down, cotangent=dy)
    act, act_vjp = jax.vjp(lambda gate, up: jax.nn.silu(gate) * up, gate, up)
    y, dact, ddown = linear_of_rounded(flat(act), down, flat(dy))
    check_close(found, (y.reshape(dy.shape), *act_vjp(jnp.asarray(dact).reshape(act.shape)), ddown))


@pytest.mark.parametrize("sizes", MESHES[4:], ids=str)
def test_results_do_not_depend_on_the_mesh(sizes, mesh_of):
    """The largest element of an array is that of all devices, also where they hold partial sums."""

    def found(**sizes):
        with mesh_of(**sizes):
            x, w, dy = tokens(D), random(RULES("embed", "mlp"), D, F, seed=1), tokens(F, "mlp", seed=2)
            run = jax.jit(lambda x, w, dy: in_float8(linear, x, w, cotangent=dy, use=RULES.compute("embed", "mlp")))
            column = run(x, w, dy)
            gate, up, down = tokens(F, "mlp"), tokens(F, "mlp", seed=1), random(RULES("mlp", "embed"), F, D, seed=2)
            out = RULES("batch", "length", None)
            partial = P(*out, unreduced=frozenset({"tensor"}))

            def loss(gate, up, down):
                y = gated_linear(gate, up, down, RULES.compute("mlp", "embed"), out=partial, float8=True)
                y = reshard(y, out)
                return jnp.sum(jnp.sin(y)), y

            row = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(gate, up, down)
            return [np.asarray(a) for a in jax.tree.leaves((column, row))]

    check_close(found(**sizes), found(data=1))


@pytest.mark.parametrize("dtype", [OPERAND, COTANGENT])
@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e-3, 1e30])
def test_arrays_of_any_size_keep_their_relative_precision(dtype, factor):
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, size=256), jnp.float32) * factor
    found = scaled_to(x, dtype)
    error = jnp.abs(found.values.astype(jnp.float32) * found.scale - x)
    assert jnp.all(error <= float(jnp.finfo(dtype).eps) / 2 * x)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(bad):
    x = scaled_to(jnp.asarray([[1.0, bad]]), OPERAND)
    assert jnp.all(jnp.isnan(scaled_dot(x, scaled_to(jnp.ones((2, 3)), OPERAND), (1,), (0,))))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_all_three_products_have_float8_operands(platform, monkeypatch):
    """In the program that compilers for accelerators get; this one's CPU would widen them first."""
    monkeypatch.setattr(module, "traced_platform", lambda: platform)
    f = lambda x, w, dy: in_float8(linear, x, w, cotangent=dy)
    args = (jnp.ones(shape, jnp.bfloat16) for shape in [(2, 16, 32), (32, 64), (2, 16, 64)])
    program = jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    kinds = re.findall(r"dot_general .*: \(tensor<[\dx]*(\w+)>, tensor<[\dx]*(\w+)>\) -> tensor<[\dx]*(\w+)>", program)
    assert sorted(kinds) == [
        ("f8E4M3FN", "f8E4M3FN", "f32"),
        ("f8E4M3FN", "f8E5M2", "f32"),
        ("f8E5M2", "f8E4M3FN", "f32"),
    ]


@pytest.mark.compilers
def test_an_h200_multiplies_float8():
    """The compiler neither widens the operands nor writes a float32 result to memory before it is scaled."""
    f = lambda x, w, dy: in_float8(linear, x, w, cotangent=dy, use=P())
    mesh = make_mesh({"data": 1}, topology("h200:1").devices)
    with jax.set_mesh(mesh):
        where = jax.sharding.NamedSharding(mesh, P())
        shapes = [(1, 4096, 2048), (2048, 8192), (1, 4096, 8192)]
        args = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where) for shape in shapes)
        program = jax.jit(f).trace(*args).lower().compile().as_text() or ""
    products = re.findall(r"^%gemm_fusion_dot.* \((.*)\) -> (\w+)\[", program, re.MULTILINE)
    assert [result for _, result in products] == ["bf16"] * 3
    assert all(len(re.findall(r": f8e\w+\[", operands)) == 2 for operands, _ in products)


FLOAT8 = {"matmul_dtype": "float8", "num_hidden_layers": 2, "no_rope_layer_interval": 2}


def test_only_dense_projections_are_rounded(monkeypatch):
    """Neither router, routed experts nor head: four products of attention in each of two layers, three of the dense
    layer and three of the shared expert."""
    monkeypatch.setattr(module, "traced_platform", lambda: "gpu")
    for dtype, count in (("compute", 0), ("float8", 14)):
        config = tiny.model_config(**FLOAT8 | {"matmul_dtype": dtype})
        with jax.set_mesh(single_device_mesh()):
            tokens = jax.device_put(tiny.batch(config)["tokens"][0], RULES("batch", "length"))
            logits = lambda tokens, config=config: Maverick(config, RULES, rngs=nnx.Rngs(0)).logits(tokens)
            program = jax.jit(logits).lower(tokens)
        lines = [line for line in program.as_text().splitlines() if "dot_general" in line]
        assert sum("f8E4M3FN" in line for line in lines) == count < len(lines)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"pipeline": 2, "fsdp": 2}, {"fsdp": 2, "tensor": 2}], ids=str)
def test_a_model_computes_the_same_on_several_devices(sizes):
    """Up to elements that sums of another order round to a neighbor, and to microbatches with scales of their own."""
    config = tiny.model_config(**FLOAT8 | {"num_hidden_layers": 4})
    tokens, found = tiny.batch(config)["tokens"][0], []
    for mesh in (single_device_mesh(), make_mesh(sizes, jax.devices()[:4])):
        rules = ShardingRules(microbatches=2)
        model = Maverick.init(config, mesh=mesh, rules=rules)
        with jax.set_mesh(mesh):
            placed = jax.device_put(tokens, rules("batch", "length"))
            loss = lambda model, tokens: jnp.mean(jnp.square(model.hidden(Inputs(tokens))[0]) ** 2)
            found.append(jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(model, placed)))
    for one, several in zip(*found, strict=True):
        error = np.linalg.norm(np.asarray(several) - np.asarray(one))
        assert error <= 0.1 * np.linalg.norm(one)
