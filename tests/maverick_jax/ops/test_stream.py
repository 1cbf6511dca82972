"""Blocks between gathered and scattered positions, against the same blocks on whole positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, reshard

from maverick_jax.ops.cross_entropy import cross_entropy, cross_entropy_reference
from maverick_jax.ops.dispatch import routed_experts
from maverick_jax.ops.linear import gated_linear, gated_linear_reference, linear, linear_reference
from maverick_jax.ops.stream import gather_tokens, scatter_tokens, stream_spec, sums_spec
from maverick_jax.sharding import MESH_AXES, ShardingRules
from tests.helpers.collectives import collectives

MESHES = [
    {"tensor": 8},
    {"data": 2, "tensor": 4},
    {"fsdp": 2, "expert": 2, "tensor": 2},
    {"context": 2, "fsdp": 2, "tensor": 2},
]
RULES = {
    "default": ShardingRules(),
    "rows not split over context": ShardingRules(length=None),
    "work not split": ShardingRules(heads=None, mlp=None, expert_mlp=None, vocab=None),
    "stream not split": ShardingRules(stream=None),
}
B, T, D, F, E, V = 8, 16, 16, 32, 4, 64


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape) * shape[-1] ** -0.5, np.float32) for shape in shapes]


def gradients(f, args):
    """The result of f and its gradients."""
    grads = jax.jit(jax.grad(lambda *args: jnp.sum(jnp.sin(f(*args))), argnums=tuple(range(len(args)))))(*args)
    return jax.jit(f)(*args), *grads


def check_close(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def mesh_of(**sizes):
    """A mesh with axes that runs may not use yet."""
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return jax.set_mesh(jax.sharding.Mesh(devices, MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES)))


def placed(x, spec):
    return reshard(jax.device_put(x, jax.P()), spec)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_block_equals_its_twin_on_whole_positions(sizes, rules):
    x, *weights = arrays((B, T, D), (D, F), (D, F), (F, D))
    axes = ("embed", "mlp"), ("embed", "mlp"), ("mlp", "embed")

    def block(x, gate, up, down):
        use = [rules.compute(*names) for names in axes]
        whole = gather_tokens(jnp.tanh(x), rules)
        gate, up = linear(whole, gate, use[0]), linear(whole, up, use[1])
        return x + scatter_tokens(gated_linear(gate, up, down, use[2], out=sums_spec(rules, T)), rules)

    def twin(x, gate, up, down):
        whole = jnp.tanh(x)
        return x + gated_linear_reference(linear_reference(whole, gate), linear_reference(whole, up), down)

    expected = gradients(twin, (x, *weights))
    with mesh_of(**sizes):
        args = (
            placed(x, stream_spec(rules, T, "residual")),
            *(placed(w, rules(*names)) for w, names in zip(weights, axes, strict=True)),
        )
        found = gradients(block, args)
        assert [jax.typeof(x).sharding.spec for x in found[1:]] == [jax.typeof(x).sharding.spec for x in args]
        assert jax.typeof(found[0]).sharding.spec == stream_spec(rules, T, "residual")
    check_close(found, expected)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("sizes", MESHES[1:3], ids=str)
def test_routed_experts_of_gathered_tokens_equal_those_of_one_device(sizes, rules):
    x, scores, w_in, w_out = arrays((B, T, D), (B, T, 2), (E, D, 2, F), (E, F, D))
    experts = jnp.asarray(np.random.default_rng(1).integers(0, E + 1, (B, T, 2)), jnp.int32)

    def block(x, scores, w_in, w_out):
        mine = reshard(experts, stream_spec(rules, T, None))
        whole = [gather_tokens(a, rules) for a in (x, scores, mine)]
        return scatter_tokens(routed_experts(*whole, w_in, w_out, rules), rules)

    def run(**sizes):
        with mesh_of(**sizes):
            of_tokens = stream_spec(rules, T, None)
            weights = rules("experts", "expert_embed", None, "expert_mlp"), rules("experts", "expert_mlp", None)
            args = [*map(placed, (x, scores, w_in, w_out), (of_tokens, of_tokens, *weights))]
            return [np.asarray(found) for found in gradients(block, args)]

    check_close(run(**sizes), run(data=1))


@pytest.mark.parametrize("name", ["default", "rows not split over context", "stream not split"])
def test_cross_entropy_of_split_positions_equals_its_twin(name):
    rules, (hidden, head) = RULES[name], arrays((B, T, D), (D, V))
    rng = np.random.default_rng(1)
    labels, weights = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32), jnp.asarray(rng.random((B, T)), jnp.float32)
    twin = lambda hidden, head: cross_entropy_reference(hidden, head, labels, weights, 0.1)[0]
    expected = gradients(twin, (hidden, head))
    with mesh_of(context=2, fsdp=2, tensor=2):
        tokens = [placed(x, rules("batch", "length")) for x in (labels, weights)]
        loss = lambda hidden, head: cross_entropy(hidden, head, *tokens, rules=rules, z_loss=0.1)[0]
        args = placed(hidden, stream_spec(rules, T, "residual")), placed(head, rules("embed", "vocab"))
        check_close(gradients(loss, args), expected)


def test_positions_that_do_not_divide_stay_whole():
    """As the one position of a decoded token."""
    rules = ShardingRules()
    with mesh_of(data=2, tensor=4):
        for length in (1, 6):
            assert stream_spec(rules, length, "residual") == rules("batch", "length", "residual")
            assert not sums_spec(rules, length).unreduced
            x = placed(jnp.ones((B, length, D)), rules("batch", "length", None))
            assert gather_tokens(x, rules) is x and scatter_tokens(x, rules) is x
        assert stream_spec(rules, 8, None) == jax.P(rules.batch, ("context", "tensor"), None)


def test_what_is_sent():
    """In the compute dtype: the positions of a block once in each direction, and of the cotangents."""
    rules = ShardingRules()
    with mesh_of(data=2, tensor=4):
        x, w = arrays((B, T, D), (D, D))
        x, w = placed(x.astype(jnp.bfloat16), stream_spec(rules, T, None)), placed(w, rules("mlp", "embed"))
        block = lambda x, w: scatter_tokens(
            linear(jnp.tanh(linear(gather_tokens(x, rules), w.T, rules("embed", "mlp"))), w, out=sums_spec(rules, T)),
            rules,
        )
        loss = lambda x, w: jnp.sum(block(x, w).astype(jnp.float32) ** 2)
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, w)
        text = lowered.compile().as_text()
    assert collectives(text, "all-gather") == [f"{B // 2},{T},{D}"] * 2
    assert collectives(text, "reduce-scatter") == [f"{B // 2},{T // 4},{D}"] * 2
    assert not [dims for dims in collectives(text, "all-reduce") if dims.count(",") == 2]
    sent = [line for line in lowered.as_text().splitlines() if "stablehlo.reduce_scatter" in line]
    assert len(sent) == 2
