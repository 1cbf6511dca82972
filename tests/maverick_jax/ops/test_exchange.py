"""Rows of routed experts on other devices: exact for any routing, and sent no more often than is stated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maverick_jax.accounting.compiled import collectives
from maverick_jax.accounting.hlo import Program
from maverick_jax.model.remat import remat
from maverick_jax.ops import exchange
from maverick_jax.ops.dispatch import routed_experts
from maverick_jax.ops.exchange import Capacity, capacity
from maverick_jax.ops.grouped_matmul import grouped_swiglu_reference
from maverick_jax.saved import RECEIVED, saved
from maverick_jax.sharding import MESH_AXES, ShardingRules

RULES = ShardingRules()
B, T, D, F, E = 8, 64, 8, 4, 8
MESHES = [{"expert": 8}, {"fsdp": 2, "expert": 4}]


def random(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def arguments():
    """Rows, scores and both weights."""
    scores, w_in = np.abs(random(B, T, 1, seed=1)), random(E, D, 2, F, seed=2, scale=0.3)
    return random(B, T, D), scores, w_in, random(E, F, D, seed=3, scale=0.3)


def placed(chosen):
    """The arguments and the experts int32[B, T, 1] on the mesh in use."""
    tokens = RULES("batch", "length", None)
    stored = RULES("experts", "expert_embed", None, "expert_mlp"), RULES("experts", "expert_mlp", "expert_embed")
    specs = tokens, tokens, *stored
    arrays = [jax.device_put(a, spec) for a, spec in zip(arguments(), specs, strict=True)]
    return arrays, jax.device_put(chosen.astype(np.int32), tokens)


def by_turns(n):
    return np.arange(B * T).reshape(B, T, 1) % n


ROUTINGS = {
    "at random, some to none": np.random.default_rng(4).integers(0, E + 1, (B, T, 1)),
    "all to one": np.full((B, T, 1), 5),
    "two by turns": 3 + 4 * by_turns(2),
    "all by turns": by_turns(E),
    "those of one sequence to one": np.where(np.arange(B)[:, None, None] == 2, 6, by_turns(E)),
    "none": np.full((B, T, 1), E),
}


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_any_routing_equals_every_expert_on_every_row(sizes, first, mesh_of, monkeypatch):
    """In value and gradient. Most of these need further rounds."""
    monkeypatch.setattr(exchange, "FIRST_ROUNDS", {"cpu": first})
    monkeypatch.setattr(exchange, "LEAST_ROWS", 8)
    mark = random(B, T, D, seed=5)

    def reference(x, scores, w_in, w_out, chosen):
        return grouped_swiglu_reference((x * scores).reshape(-1, D), w_in, w_out, chosen.reshape(-1)).reshape(B, T, D)

    with_gradients = lambda f: jax.jit(lambda *a: (f(*a), jax.grad(lambda *a: jnp.sum(mark * f(*a)), (0, 1, 2, 3))(*a)))
    slow, fast = with_gradients(reference), with_gradients(lambda x, s, i, o, e: routed_experts(x, s, e, i, o, RULES))
    for routing, chosen in ROUTINGS.items():
        expected = slow(*arguments(), jnp.asarray(chosen, jnp.int32))
        with mesh_of(**sizes):
            arrays, experts = placed(chosen)
            got = fast(*arrays, experts)
        # 2e-5: sums of up to 512 float32 terms in another order
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=routing)  # noqa: B023
        jax.tree.map(close, got, expected)


@pytest.mark.parametrize("preset", [pytest.param("dots", marks=pytest.mark.slow), "none", "attention", "full"])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_rows_are_sent_as_often_as_layers_that_do_not_keep_them_need(sizes, preset, mesh_of):
    """Four times at least in each of two layers: rows and gradients, there and back. The loop of further rounds is left
    out."""
    kept, devices = saved(preset, ["all_layers"]), sizes["expert"]
    with mesh_of(**sizes):
        arrays, experts = placed(by_turns(E))

        def loss(x, scores, w_in, w_out):
            layer = remat(lambda x, e: routed_experts(x, scores, e, w_in, w_out, RULES), kept)
            return jnp.sum(jnp.sin(lax.scan(lambda x, e: (layer(x, e), None), x, jnp.stack([experts] * 2))[0]))

        text = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*arrays).compile().as_text()
    found = collectives(Program.parse(text, lambda loop: 0), dict.fromkeys(MESH_AXES, 1) | sizes)
    room, again = capacity(T, devices, "cpu"), not kept.has(RECEIVED)
    rows = (4 + again) * room.total * D * 4
    counts = (1 + again) * E // devices * 4 if devices < E else 0
    assert sum(c.total for c in found if c.kind == "all-to-all") == 2 * (devices - 1) * (rows + counts)


@pytest.mark.parametrize(
    ("num_rows", "devices", "platform", "expected"),
    [
        (32768, 128, "gpu", Capacity(4, 88)),  # 256 + 6 x 16, in 4 rounds
        (32768, 16, "gpu", Capacity(4, 584)),  # 2048 + 6 x 45.3
        (32768, 128, "cpu", Capacity(1, 352)),
        (2048, 128, "gpu", Capacity(1, 40)),  # products of fewer rows are not divided
        (12, 8, "cpu", Capacity(1, 16)),
    ],
)
def test_first_rounds_have_room_for_balanced_routing(num_rows, devices, platform, expected):
    assert capacity(num_rows, devices, platform) == expected
