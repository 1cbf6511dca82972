"""Rows of routed experts on other devices: exact for any routing, and sent no more often than is stated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maverick_jax.accounting.communication import communication
from maverick_jax.accounting.compiled import collectives
from maverick_jax.accounting.hlo import Program
from maverick_jax.accounting.layout import Layout
from maverick_jax.model.remat import remat
from maverick_jax.ops import exchange
from maverick_jax.ops.dispatch import FURTHER_ROUNDS, routed_experts
from maverick_jax.ops.exchange import Capacity, capacity, limited_capacity
from maverick_jax.ops.expert_limit import within_limit, within_limit_reference
from maverick_jax.ops.grouped_matmul import grouped_swiglu_reference
from maverick_jax.row_split import RowSplit
from maverick_jax.saved import RECEIVED, saved
from maverick_jax.sharding import MESH_AXES, ShardingRules
from tests.helpers import tiny

RULES = ShardingRules()
B, T, D, F, E = 8, 64, 8, 4, 8
MESHES = [{"expert": 8}, {"fsdp": 2, "expert": 4}]


def random(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def arguments():
    """Rows, scores and both weights."""
    scores, w_in = np.abs(random(B, T, 1, seed=1)), random(E, D, 2, F, seed=2, scale=0.3)
    return random(B, T, D), scores, w_in, random(E, F, D, seed=3, scale=0.3)


def placed(chosen, rules=RULES):
    """The arguments and the experts int32[B, T, 1] on the mesh in use."""
    tokens = rules("batch", "length", None)
    stored = rules("experts", "expert_embed", None, "expert_mlp"), rules("experts", "expert_mlp", "expert_embed")
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
    check_routings(ROUTINGS, mesh_of, sizes)


def check_routings(routings, mesh_of, sizes, rules=RULES, limit=None):
    """Values and gradients on that mesh equal those of every expert on every row that it takes."""
    mark, order = random(B, T, D, seed=5), RowSplit(T, sizes.get("context", 1))

    def reference(x, scores, w_in, w_out, chosen):
        return grouped_swiglu_reference((x * scores).reshape(-1, D), w_in, w_out, chosen.reshape(-1)).reshape(B, T, D)

    def exchanged(x, scores, w_in, w_out, chosen):
        if limit is not None:
            chosen = within_limit(chosen, limit, E, rules)[0]
        return routed_experts(x, scores, chosen, w_in, w_out, rules, limit)

    with_gradients = lambda f: jax.jit(lambda *a: (f(*a), jax.grad(lambda *a: jnp.sum(mark * f(*a)), (0, 1, 2, 3))(*a)))
    slow, fast = with_gradients(reference), with_gradients(exchanged)
    for routing, chosen in routings.items():
        taken = jnp.asarray(chosen, jnp.int32)
        if limit is not None:
            taken = order.split(within_limit_reference(order.whole(taken, 1), limit, E)[0], 1)
        expected = slow(*arguments(), taken)
        with mesh_of(**sizes):
            arrays, experts = placed(chosen, rules)
            got = fast(*arrays, experts)
        # 2e-5: sums of up to 512 float32 terms in another order
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=routing)  # noqa: B023
        jax.tree.map(close, got, expected)


@pytest.mark.parametrize(
    ("axes", "sizes"),
    [
        (("expert", "context"), {"context": 2, "expert": 2}),  # two experts on each device
        pytest.param(("expert", "fsdp"), {"fsdp": 2, "expert": 4}, marks=pytest.mark.slow),  # one
    ],
    ids=str,
)
def test_any_routing_over_two_mesh_axes_equals_every_expert_on_every_row(axes, sizes, mesh_of, monkeypatch):
    """Among them all rows to one expert, and all to the experts of one device, which need further rounds."""
    rules = dataclasses.replace(RULES, experts=axes, expert_embed=None)
    of_device = {"all to two, of one device or neighbors": 2 + by_turns(2)}
    check_routings(ROUTINGS | of_device, mesh_of, sizes, rules)


@pytest.mark.parametrize(
    ("sizes", "limit"),
    [
        ({"context": 2, "expert": 4}, 10),
        pytest.param({"fsdp": 2, "expert": 4}, T, marks=pytest.mark.slow),
        pytest.param({"fsdp": 2, "expert": 4}, 10, marks=pytest.mark.slow),
        pytest.param({"context": 2, "expert": 4}, T, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_any_routing_within_a_limit_equals_every_expert_on_the_rows_it_takes(sizes, limit, mesh_of):
    """In one round. A limit of all tokens drops none."""
    check_routings(ROUTINGS, mesh_of, sizes, limit=limit)


@pytest.mark.parametrize(("preset", "again"), [("attention", 0), pytest.param("full", 1, marks=pytest.mark.slow)])
def test_rows_within_a_limit_are_sent_in_one_round_as_the_plan_says(preset, again, mesh_of):
    """Of two layers, each four times, or once more, as many as the closed form has room for; and the choice of tokens
    once, or twice, to the devices that share rows. No loop waits for a device."""
    sizes = {"context": 2, "expert": 4}
    config = tiny.model_config(
        hidden_size=D, num_hidden_layers=2, interleave_moe_layer_step=1, remat=preset, expert_capacity_factor=1.25
    )
    layout = Layout(RULES, dict.fromkeys(MESH_AXES, 1) | sizes, B, T)
    room, whole, limit = layout.exchange(config), layout.exchange(config.dropless), config.expert_limit(T)
    assert room and whole
    assert limit == 10 and room == Capacity(1, 2 * 2 * 10, further=False)  # of 2 rows, for 2 experts
    with mesh_of(**sizes):
        arrays, experts = placed(by_turns(E))

        def loss(x, scores, w_in, w_out, experts):
            def layer(x, experts):
                chosen, _ = within_limit(experts, limit, E, RULES)
                return routed_experts(x, scores, chosen, w_in, w_out, RULES, limit)

            run = remat(layer, saved(preset, ["all_layers"]))
            return jnp.sum(jnp.sin(lax.scan(lambda x, e: (run(x, e), None), x, experts)[0]))

        text = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*arrays, jnp.stack([experts] * 2)).compile().as_text()
    assert text and FURTHER_ROUNDS not in text
    found = collectives(Program.parse(text, lambda loop: 0), dict.fromkeys(MESH_AXES, 1) | sizes)
    sent = lambda kind, *dtypes: sum(c.total for c in found if c.kind == kind and c.dtype in dtypes)
    rows, counts = (4 + again) * room.total * D * 4, (1 + again) * E // 4 * 4
    assert sent("all-to-all", "f32", "s32") == 2 * 3 * (rows + counts)
    ids = 2 * (1 + again) * B * T // 8 * 4
    assert sent("all-gather", "s32") == ids
    planned, dropless = (communication(c, layout) for c in (config, config.dropless))
    assert planned["gather"] - dropless["gather"] == ids
    more = (4 + again) * (whole.total - room.total) * D * 4
    assert dropless["all_to_all"] - planned["all_to_all"] == 2 * 3 * more


def test_one_round_has_room_for_all_that_a_limit_allows():
    assert limited_capacity(4, 64, 1, 2, 10) == Capacity(1, 80, further=False)
    assert limited_capacity(4, 64, 1, 2, 64).total == 4 * 64, "no device has more rows"
    assert limited_capacity(4, 32, 2, 2, 40).total == 4 * 64, "devices that share rows have no more of their tokens"
    assert limited_capacity(1, 64, 1, 1, 9).total == 16, "rows come in eights"


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
