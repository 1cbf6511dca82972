"""A run gives the same results on every mesh, and parameters are created and kept sharded."""

import collections
import dataclasses
import functools
import math
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from maverick_jax.network import Balance
from maverick_jax.sharding import ShardingRules, abstract_mesh, axes_tuple, single_device_mesh
from tests.helpers import tiny
from tests.helpers.collectives import collectives
from train.state import TrainState, abstract_state, init_state

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MIXED = {"data": 2, "expert": 2, "tensor": 2}
EIGHT_WAYS = {"num_key_value_heads": 8}
"""Of the config of the run `eight ways`, whose attention splits over 8 devices."""
STAGES = {"num_hidden_layers": 9, "no_rope_layer_interval": 2}
"""Of the config of the runs `stages`: four periods of two layers, and a tail."""
SCOUT = {"interleave_moe_layer_step": 1, "no_rope_layer_interval": 2}
"""Of the config of the runs `experts in all layers`: two periods of two layers."""
RUNS = [
    ("balanced", MIXED),
    pytest.param("balanced", {"tensor": 4, "fsdp": 2}, marks=pytest.mark.slow),
    pytest.param("one expert", MIXED, marks=pytest.mark.slow),
    *(pytest.param("balanced", {axis: 8}, marks=pytest.mark.slow) for axis in ("data", "fsdp", "expert")),
    pytest.param("one expert", {"expert": 8}, marks=pytest.mark.slow),
    pytest.param("eight ways", {"tensor": 8}, marks=pytest.mark.slow),
    pytest.param("balanced", {"expert": 4, "tensor": 2}, marks=pytest.mark.slow),
    *(
        pytest.param(routing, {"pipeline": n, **sizes}, marks=pytest.mark.slow)
        for routing, n, sizes in (
            ("stages", 2, {}),
            ("stages", 2, {"fsdp": 2, "tensor": 2}),
            ("stages", 2, {"expert": 2, "tensor": 2}),
            ("stages", 2, {"data": 2, "expert": 2}),
            ("stages", 4, {"expert": 2}),
            ("stages", 4, {"fsdp": 2}),
            ("stages", 4, {"tensor": 2}),
            ("experts in all layers", 2, {"fsdp": 2, "expert": 2}),
        )
    ),
]


def to_one_expert(state: TrainState) -> TrainState:
    """Makes all router logits equal, so that every token is routed to expert 0."""

    def zeroed(path, leaf):
        return leaf * 0 if "router" in jax.tree_util.keystr(path) else leaf

    model = jax.tree_util.tree_map_with_path(zeroed, state.model)
    return dataclasses.replace(state, model=model)


def run(config, *, one_expert: bool) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of ten steps, and all arrays of the final state: parameters and Adam's moments."""
    init, step = tiny.jitted(config)
    state = init(0)
    if one_expert:
        state = jax.jit(to_one_expert)(state)
    losses = []
    for i in range(tiny.STEPS):
        state, metrics = step(state, tiny.placed(tiny.batch(config, i)))
        losses.append(float(metrics["loss"]))
    return losses, {name: np.asarray(x, np.float64) for name, x in names.flatten(state).items()}


@functools.cache
def reference(routing: str):
    """The run on one device. `one expert` has no balance losses, which would distribute the tokens again."""
    one = routing == "one expert"
    changes = {"one expert": {"balance": Balance(kind="none", z_loss=0.0)}, "eight ways": EIGHT_WAYS,
               "stages": STAGES, "experts in all layers": SCOUT}  # fmt: skip
    config = tiny.model_config(**changes.get(routing, {}))
    with jax.set_mesh(single_device_mesh()):
        return config, one, run(config, one_expert=one)


@pytest.mark.parametrize(("routing", "sizes"), RUNS, ids=str)
def test_same_run_on_every_mesh(routing, sizes, mesh_of):
    config, one_expert, (losses, arrays) = reference(routing)
    with mesh_of(**sizes):
        got_losses, got = run(config, one_expert=one_expert)
    np.testing.assert_allclose(got_losses, losses, atol=1e-5, rtol=0)
    for name, expected in arrays.items():
        scale = max(np.abs(expected).max(), 1e-12)
        assert np.abs(got[name] - expected).max() <= 1e-3 * scale, name
        # Adam divides by roots of tiny second moments, so single elements may differ, but not whole arrays
        assert np.linalg.norm(got[name] - expected) <= 1e-4 * max(np.linalg.norm(expected), 1e-12), name


@pytest.mark.parametrize(
    "sizes", [pytest.param({"fsdp": 8}, marks=pytest.mark.slow), {"fsdp": 2, "expert": 2, "tensor": 2}], ids=str
)
def test_no_device_ever_holds_a_whole_sharded_parameter(sizes, mesh_of):
    """No array in the compiled init or step has as many elements as a stack of weights that the mesh shards."""
    config = tiny.model_config(
        num_hidden_layers=8, num_local_experts=16, intermediate_size=64, intermediate_size_mlp=256
    )
    with mesh_of(**sizes):
        init, step = tiny.jitted(config)
        shapes = jax.eval_shape(init, 0)
        stacks = {
            name: x for name, x in names.flatten(shapes.model).items() if "periods" in name and any(x.sharding.spec)
        }
        compiled_init = init.lower(0).compile()
        compiled_step = step.lower(compiled_init(0), tiny.placed(tiny.batch(config))).compile()
    largest = max(int(np.prod(x.shape)) for x in stacks.values())
    for compiled in (compiled_init, compiled_step):
        seen = set(re.findall(r"f32\[([\d,]+)\]", compiled.as_text()))
        assert seen and not sorted(seen & {",".join(map(str, x.shape)) for x in stacks.values()})
        assert max(int(np.prod([int(d) for d in dims.split(",")])) for dims in seen) < largest
    for name, x in names.flatten(shapes.opt_state).items():
        if "/mu/" in name or "/nu/" in name:
            assert x.sharding.spec == names.flatten(shapes.model)[name.split("u/", 1)[1]].sharding.spec, name


@pytest.mark.parametrize("remat", ["full", pytest.param("none", marks=pytest.mark.slow)])
def test_gradients_of_layers_leave_as_reduce_scatters(remat, mesh_of):
    """In compiled gradients of two periods: each matrix that devices share is gathered twice, its gradient is scattered
    once, and no gradient of the whole matrix is summed over devices."""
    config = tiny.model_config(num_hidden_layers=4, num_local_experts=4, no_rope_layer_interval=2, remat=remat)
    with mesh_of(fsdp=2, expert=2, tensor=2):
        model = jax.eval_shape(lambda: Maverick(config, rngs=nnx.Rngs(0)))
        batch = {name: x[0] for name, x in tiny.placed(tiny.batch(config)).items()}
        loss = lambda model, batch: jnp.sum(model.hidden(Inputs.of(batch))[0])
        text = jax.jit(jax.grad(loss)).lower(model, batch).compile().as_text()
    gathered = frozenset({"fsdp", "expert"})
    whole, shards = collections.Counter(), collections.Counter()
    for name, x in names.flatten(model).items():
        matrix = "periods" in name and not name.endswith(("norm", "router"))
        if matrix:
            local = x.sharding.shard_shape(x.shape)[1:]
            own = "experts_" in name  # the expert axis splits experts, not their matrices
            ways = [
                math.prod(2 for axis in axes_tuple(entry) if axis in gathered and not (own and axis == "expert"))
                for entry in (*x.sharding.spec[1:], *(None,) * x.ndim)
            ]
            shards[",".join(map(str, local))] += 1
            whole[",".join(str(n * k) for n, k in zip(local, ways, strict=False))] += 1
    assert sum(whole.values()) == 2 * 4 + 3 + 3 + 2  # attention twice, a dense layer, a shared expert, experts
    tokens = "2,12,"  # 8 rows over 4 devices, 24 positions over 2: sums of blocks are scattered too
    scattered = [dims for dims in collectives(text, "reduce-scatter") if not dims.startswith(tokens)]
    assert collections.Counter(scattered) == shards
    seen = collections.Counter(collectives(text, "all-gather"))
    assert {dims: seen[dims] for dims in whole} == {dims: 2 * n for dims, n in whole.items()}
    assert not whole.keys() & set(collectives(text, "all-reduce"))


def test_parameter_specs_of_maverick_are_golden():
    """Shapes and specs of all parameters on 512 devices. UPDATE_GOLDEN=1 updates the file."""
    config = ModelConfig.from_name("maverick_17b_128e")
    key = jax.random.key(0)
    with jax.sharding.use_abstract_mesh(abstract_mesh({"fsdp": 4, "expert": 128})):
        build = functools.partial(Maverick, config, ShardingRules())
        model = jax.eval_shape(lambda key: build(rngs=nnx.Rngs(params=key)), key)
    lines = [f"{name} {x.dtype}{list(x.shape)} {x.sharding.spec}" for name, x in names.flatten(model).items()]
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(model)) == config.num_parameters()
    path = GOLDEN / "maverick_parameters.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    assert path.read_text().splitlines() == lines


def test_one_compilation(mesh_of):
    config = tiny.model_config()
    with mesh_of(**MIXED):
        init, step = tiny.jitted(config)
        state = init(0)
        for i in range(3):
            state, _ = step(state, tiny.placed(tiny.batch(config, i)))
        assert step._cache_size() == 1
        types = lambda tree: [str(jax.typeof(x)) for x in jax.tree.leaves(tree)]
        assert types(state) == types(init(0))


def test_a_fresh_state_matches_the_restore_target(mesh_of):
    from train.state import abstract_state

    config = tiny.model_config()
    with mesh_of(**MIXED):
        tx = tiny.OPTIMIZER.build(tiny.STEPS, config)
        state = jax.jit(
            functools.partial(init_state, config=config, rules=tiny.RULES, optimizer=tx, objective=tiny.PRETRAIN)
        )(0)
        target = abstract_state(
            jax.sharding.get_mesh(), config=config, rules=tiny.RULES, optimizer=tx, objective=tiny.PRETRAIN
        )
    for name, x in names.flatten(state).items():
        wanted = names.flatten(target)[name]
        assert x.shape == wanted.shape and x.dtype == wanted.dtype, name
        assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim), name


@pytest.mark.slow
def test_a_checkpoint_of_a_pipeline_goes_on_without_one_and_back(mesh_of, tmp_path):
    """Three steps each with a pipeline, on one device, and with a longer pipeline: the losses of one device."""
    config = tiny.model_config(**STAGES)
    losses = []
    with jax.set_mesh(single_device_mesh()):
        init, step = tiny.jitted(config)
        state = init(0)
        for i in range(9):
            state, metrics = step(state, tiny.placed(tiny.batch(config, i)))
            losses.append(float(metrics["loss"]))
    store, found = CheckpointStore(tmp_path), []
    for sizes in ({"pipeline": 2, "fsdp": 2}, {"data": 1}, {"pipeline": 4, "expert": 2}):
        with mesh_of(**sizes):
            init, step = tiny.jitted(config)
            tx = tiny.OPTIMIZER.build(tiny.STEPS, config)
            parts = {"config": config, "rules": tiny.RULES, "optimizer": tx, "objective": tiny.PRETRAIN}
            target = abstract_state(jax.sharding.get_mesh(), **parts)
            state = names.unflatten(target, store.restore(names.flatten(target))[1]) if found else init(0)
            for _ in range(3):
                state, metrics = step(state, tiny.placed(tiny.batch(config, len(found))))
                found.append(float(metrics["loss"]))
            store.save(len(found), names.flatten(state), {}, wait=True)
    np.testing.assert_allclose(found, losses, atol=1e-5, rtol=0)
