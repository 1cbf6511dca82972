"""Muon equals Optax's on stacked and sharded parameters, and AdamW updates all other parameters."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from launch.plan import plan
from maverick_jax import parameters
from maverick_jax.accounting.compiled import collectives, flops
from maverick_jax.accounting.hlo import Program
from maverick_jax.accounting.layout import Layout
from maverick_jax.checkpoint import names
from maverick_jax.errors import InputError
from maverick_jax.network import VisionConfig
from maverick_jax.parameters import Parameter
from maverick_jax.sharding import MESH_AXES, axes_tuple, make_mesh, size_of
from tests.helpers import tiny
from train.config_files import read_config
from train.optimizers import AdamW, Muon
from train.optimizers.adamw import scale_by_adam
from train.optimizers.muon import RMS, matrix_of, orthogonalized, scale_by_muon
from train.trainable.config import TrainableConfig

CONFIG = tiny.model_config(num_hidden_layers=5, no_rope_layer_interval=2)  # two periods and a tail
MUON = Muon(learning_rate=3e-3, warmup_steps=2, schedule="constant")
VISION = VisionConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4,
    vision_output_dim=8, image_token_index=63, boi_token_index=61, eoi_token_index=62)  # fmt: skip
SPLIT = {"fsdp": 2, "expert": 2, "tensor": 2}


def mesh_of(sizes):
    return make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])


@functools.cache
def trained(experts: bool = False, **sizes):
    """Losses of three steps, the final arrays, and bytes of optimizer state on one device."""
    trainable = TrainableConfig(parameters=("experts",), experts={"1": (3, 5), "3": (0,)}) if experts else None
    with jax.set_mesh(mesh_of(sizes)):
        init, step = tiny.jitted(CONFIG, MUON, trainable=trainable or TrainableConfig())
        state, losses = init(0), []
        for i in range(3):
            state, metrics = step(state, tiny.placed(tiny.batch(CONFIG, i)))
            losses.append(float(metrics["loss"]))
        held = [x for name, x in names.flatten(state.opt_state).items() if "/mu/" in name or "/nu/" in name]
        found = {name: np.array(x) for name, x in names.flatten(state).items()}
        return losses, found, sum(x.addressable_shards[0].data.nbytes for x in held)


# ---- which parameters ------------------------------------------------------------------------------------------------


def test_hidden_matrices_map_from_or_to_the_model_width():
    """All axes except experts and the pair of gate and up belong to a matrix, and one side of it is the model's
    width."""
    declared = parameters.by_name(CONFIG)
    hidden = {name: p for name, p in declared.items() if matrix_of(p) is not None}
    roles = ("attention", "shared", "experts", "mlp")
    assert hidden.keys() == {name for name, p in declared.items() if p.role in roles}
    for name, p in hidden.items():
        inputs, outputs = (tuple(axis % len(p.shape) for axis in axes) for axes in matrix_of(p))
        inside = [*inputs, *outputs]
        outside = [axis for i, axis in enumerate(p.axes) if i not in inside]
        kind = name.rpartition("/")[2]
        assert outside == {"experts_in": ["experts", None], "experts_out": ["experts"]}.get(kind, []), name
        assert inside == sorted(inside) and len(inputs) == p.inputs, name
        widths = [math.prod(p.shape[axis] for axis in axes) for axes in (inputs, outputs)]
        assert widths[0 if kind in ("q", "k", "v", "gate", "up", "experts_in") else 1] == CONFIG.hidden_size, name


def test_all_other_parameters_use_adam():
    vision = tiny.model_config(vision=VISION)
    adam = [p for p in parameters.of_model(vision) if matrix_of(p) is None]
    assert {p.role for p in adam} == {"router", "norms", "embed", "head", "vision", "adapter", "projector"}
    assert MUON.state_bytes(None) == 8 and {MUON.state_bytes(p) for p in adam} == {8}


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_three_updates_equal_those_of_optax():
    """For two matrices, one of them a projection to heads; Optax runs without a mesh."""
    rng = np.random.default_rng(0)
    draw = lambda: {"attention/q": rng.normal(size=(8, 2, 3)).astype(np.float32),
                    "mlp/down": rng.normal(size=(12, 8)).astype(np.float32)}  # fmt: skip
    params, grads = draw(), [draw() for _ in range(3)]
    matrix = optax.contrib.MuonDimensionNumbers
    numbers = {"attention/q": matrix(0, (1, 2)), "mlp/down": matrix(0, 1)}
    theirs = optax.contrib.muon(0.1, beta=0.9, consistent_rms=RMS, muon_weight_dimension_numbers=numbers)
    hidden = {"attention/q": Parameter("q", (8, 2, 3), ("embed", "heads", None), "attention"),
              "mlp/down": Parameter("down", (12, 8), ("mlp", "embed"), "mlp")}  # fmt: skip
    ours = optax.chain(scale_by_muon(hidden, 0.9, 5, "float32"), optax.scale_by_learning_rate(0.1))
    expected, found = [], []
    with jax.numpy_dtype_promotion("standard"):
        state = theirs.init(jax.tree.map(jnp.asarray, params))
        for g in grads:
            updates, state = theirs.update(jax.tree.map(jnp.asarray, g), state, params)
            expected.append(updates)
    with jax.set_mesh(mesh_of({"data": 1})):
        place = lambda tree: jax.tree.map(lambda x: jax.device_put(x, PartitionSpec(*(None,) * x.ndim)), tree)
        state = ours.init(place(params))
        for g in grads:
            updates, state = jax.jit(ours.update)(place(g), state)
            found.append(updates)
    for mine, other in zip(found, expected, strict=True):
        for name in params:
            np.testing.assert_allclose(mine[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)


def newton_schulz(matrix: np.ndarray, steps: int) -> np.ndarray:
    """The twin: the published iteration of one matrix, in float64 (K. Jordan and others, 2024)."""
    x = matrix.astype(np.float64) / np.linalg.norm(matrix)
    if x.shape[0] > x.shape[1]:
        return newton_schulz(matrix.T, steps).T
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def stored_spec(declared: Parameter) -> PartitionSpec:
    return PartitionSpec(*(None,) * len(declared.lead), *tiny.RULES.storage(*declared.axes))


NAMES = ["periods/layer_1/moe/experts_in", "periods/layer_1/moe/experts_out", "periods/layer_0/attention/q",
         "periods/layer_0/attention/o", "tail/layer_0/mlp/up"]  # fmt: skip
MESHES = [SPLIT, {"fsdp": 4, "expert": 2}]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_of_a_sharded_stack_is_orthogonalized_separately(name, sizes):
    """The twin takes one matrix after another. By NumPy's singular vectors, the result for U S V is about U V."""
    declared = parameters.by_name(CONFIG)[name]
    x = np.random.default_rng(1).normal(size=declared.full_shape).astype(np.float32)
    with jax.set_mesh(mesh_of(sizes)):
        spec = stored_spec(declared)
        assert any(spec)
        placed = jax.device_put(x, spec)
        got = jax.jit(lambda x: orthogonalized(x, declared, 5))(placed)
        assert got.sharding == placed.sharding
    got = np.asarray(got)
    if name.endswith("experts_in"):  # [periods, E, D, 2, F]
        x, got = np.moveaxis(x, -2, 2), np.moveaxis(got, -2, 2)
    if name.endswith("/o"):  # [periods, N, H, D]
        x, got = (y.reshape(len(y), -1, y.shape[-1]) for y in (x, got))
    if name.endswith("/q"):  # [periods, D, N, H]
        x, got = (y.reshape(*y.shape[:2], -1) for y in (x, got))
    for mine, matrix in zip(got.reshape(-1, *got.shape[-2:]), x.reshape(-1, *x.shape[-2:]), strict=True):
        scale = RMS * math.sqrt(max(matrix.shape))
        np.testing.assert_allclose(mine, scale * newton_schulz(matrix, 5), rtol=1e-3, atol=1e-3 * scale)
        u, _, v = np.linalg.svd(matrix, full_matrices=False)
        values = np.diag(u.T @ mine @ v.T) / scale
        assert np.median(values) > 0.6 and (values < 1.3).all()


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_devices_that_share_matrices_divide_the_work(name, sizes):
    """Nothing is gathered: one all-to-all brings each device its share of the matrices, whole, and one returns them. No
    device works on more than ceil(matrices / devices of the group), and experts never leave theirs."""
    declared = parameters.by_name(CONFIG)[name]
    inside = [axis for axes in matrix_of(declared) for axis in axes]
    shards = tiny.RULES.storage(*declared.axes)
    group = {a for axis in inside for a in axes_tuple(shards[axis]) if sizes.get(a, 1) > 1}
    matrices = declared.size // math.prod(declared.shape[axis] for axis in inside)
    held = matrices // (sizes["expert"] if declared.role == "experts" else 1)
    most = -(-held // size_of(sizes, tuple(group)))

    def program(sizes: dict[str, int]) -> Program:
        mesh = mesh_of(sizes)
        with jax.set_mesh(mesh):
            where = jax.sharding.NamedSharding(mesh, stored_spec(declared))
            like = jax.ShapeDtypeStruct(declared.full_shape, jnp.float32, sharding=where)
            return Program.parse(jax.jit(lambda x: orthogonalized(x, declared, 5)).lower(like).compile().as_text())

    found = collectives(split := program(sizes), mesh_of(sizes).shape)
    assert [c.kind for c in found] == ["all-to-all"] * 2
    assert all(set(c.axes) == group for c in found) and ("expert" not in group or declared.role != "experts")
    layout = Layout(tiny.RULES, dict.fromkeys(MESH_AXES, 1) | sizes, 8, 16)
    planned = MUON.transfers(declared, layout)
    assert sum(t.bytes for t in planned) == sum(c.total for c in found) > 0, "the closed form"
    assert MUON.update_flops(declared, layout) == flops(split)
    whole = program({"data": 1})
    assert flops(split) * matrices == flops(whole) * most > 0


def test_other_parameters_are_updated_like_adamw():
    rng = np.random.default_rng(2)
    with jax.set_mesh(mesh_of({"data": 1})):
        draw = lambda shape: jax.device_put(rng.normal(size=shape).astype(np.float32), PartitionSpec())
        params = {"embed": draw((6, 4)), "norm": draw((4,)), "mlp/up": draw((4, 5))}
        grads = jax.tree.map(lambda x: draw(x.shape), params)
        hidden = {"mlp/up": Parameter("up", (4, 5), ("embed", "mlp"), "mlp")}
        muon, adam = MUON.direction(hidden), scale_by_adam(MUON.b1, MUON.b2, MUON.eps, "float32", "float32")
        got = jax.jit(muon.update)(grads, muon.init(params), params)[0]
        expected = jax.jit(adam.update)(grads, adam.init(params))[0]
    for name in ("embed", "norm"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)
    assert np.abs(np.asarray(got["mlp/up"]) - np.asarray(expected["mlp/up"])).max() > 0.1


# ---- whole steps -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("experts", [False, True], ids=["all", "chosen experts"])
def test_a_sharded_model_learns_like_a_whole_one(experts):
    whole, split = trained(experts), trained(experts, **SPLIT)
    assert whole[0][-1] < whole[0][0]
    np.testing.assert_allclose(whole[0], split[0], rtol=1e-4)
    for name, x in whole[1].items():
        np.testing.assert_allclose(x, split[1][name], atol=1e-3, err_msg=name)


WORDS = ["model.vocab_size=64", "model.hidden_size=32", "model.num_hidden_layers=5", "model.num_attention_heads=8",
         "model.num_key_value_heads=4", "model.head_dim=4", "model.intermediate_size=16", "data.tokenizer=bytes",
         "model.intermediate_size_mlp=32", "model.no_rope_layer_interval=2", "model.num_local_experts=8"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{}, SPLIT], ids=str)
def test_plan_counts_one_moment_of_hidden_matrices(sizes):
    mesh = [f"mesh.{axis}={n}" for axis, n in ({"data": 1} | sizes).items()]
    words = [*WORDS, *mesh, "optimizer.kind=muon"]
    held = plan(read_config("pretrain_tiny", words))["bytes_per_device"]["optimizer"]
    assert held == trained(**sizes)[2]
    adam = plan(read_config("pretrain_tiny", [*WORDS, *mesh]))["bytes_per_device"]["optimizer"]
    hidden = [p for p in parameters.of_model(CONFIG) if matrix_of(p)]
    if not sizes:
        assert adam - held == 4 * sum(p.size for p in hidden)


def test_a_section_without_a_kind_is_adamw():
    assert read_config("pretrain_tiny").optimizer == AdamW(
        learning_rate=3e-3, warmup_steps=100, schedule="cosine", min_ratio=0.05, weight_decay=0.1
    )
    with pytest.raises(InputError, match=r"optimizer.momentum: a key of kind: muon; this one is of kind: adamw"):
        read_config("pretrain_tiny", ["optimizer.momentum=0.9"])
    with pytest.raises(InputError, match=r"optimizer.kind: 'muonn' is not one of adamw, muon; did you mean muon\?"):
        read_config("pretrain_tiny", ["optimizer.kind=muonn"])
