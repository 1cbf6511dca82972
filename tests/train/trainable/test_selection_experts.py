"""Training single experts: only they change and have moments, and they learn as in a model that is trained whole."""

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from data.rows.dataset import open_dataset
from launch.plan import plan
from maverick_jax import parameters
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointConfig, CheckpointStore
from maverick_jax.errors import InputError
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.layers import Taps
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.expert_rows import ExpertRows, put_rows, take_rows, with_rows
from maverick_jax.sharding import make_mesh, single_device_mesh
from tests.helpers import tiny
from train.config_files import read_config
from train.expert_scores import choose_experts, show
from train.objectives.base import Context
from train.trainable.config import TrainableConfig
from train.trainable.expert_use import pick
from train.trainable.selection import Selection

# two periods of two mixtures of experts, and one more
CONFIG = tiny.model_config(num_hidden_layers=5, no_rope_layer_interval=2, interleave_moe_layer_step=1)
CHOSEN = {0: (6, 1), 2: (3,), 3: (0,), 4: (5, 7)}  # 1 has none; 0 and 2, 1 and 3 are stacked
SPLIT = {"fsdp": 2, "expert": 2, "tensor": 2}
SMOOTH = tiny.OPTIMIZER.model_copy(update={"eps": 1e-5})
"""Else rounding decides the sign of an update where a gradient is almost zero."""


def experts_alone(chosen) -> TrainableConfig:
    return TrainableConfig(parameters=("experts",), experts={str(layer): ids for layer, ids in chosen.items()})


def arrays(tree) -> dict[str, np.ndarray]:
    return {name: np.array(x) for name, x in names.flatten(tree).items()}


@functools.cache
def run(**sizes):
    """Arrays of the state before and after three steps, metrics and norm of first moments for each step, and bytes of
    moments on one device."""
    with jax.set_mesh(make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])):
        init, step = tiny.jitted(CONFIG, SMOOTH, trainable=experts_alone(CHOSEN))
        state, seen = init(0), []
        before = arrays(state)
        for i in range(3):
            state, metrics = step(state, tiny.placed(tiny.batch(CONFIG, i)))
            mu = [x for name, x in names.flatten(state.opt_state).items() if "/mu/" in name]
            seen.append(arrays(metrics | {"mu": jnp.sqrt(sum(jnp.sum(x * x) for x in mu))}))
        kept = [x for name, x in names.flatten(state.opt_state).items() if "/mu/" in name or "/nu/" in name]
        return before, arrays(state), seen, sum(x.addressable_shards[0].data.nbytes for x in kept)


def experts_of(found, layer: int, config=CONFIG) -> list[np.ndarray]:
    """A layer's arrays of experts [E, ...]."""
    period, slot = divmod(layer, len(config.period))
    if period < config.num_periods:
        return [found[f"model/periods/layer_{slot}/moe/experts_{way}"][period] for way in ("in", "out")]
    return [found[f"model/tail/layer_{slot}/moe/experts_{way}"] for way in ("in", "out")]


def changed(before, after, config=CONFIG) -> set[tuple[int, int]]:
    """The pairs (layer, expert) that differ. Asserts that the rest of the model is the same."""
    for name in (n for n in before if n.startswith("model/") and "/experts_" not in n):
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    moe = [i for i, spec in enumerate(config.layers) if spec.moe]
    each = lambda found, layer, e: [x[e] for x in experts_of(found, layer, config)]
    same = lambda i, e: all(map(np.array_equal, each(before, i, e), each(after, i, e)))
    return {(i, e) for i in moe for e in range(config.num_local_experts) if not same(i, e)}


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{}, {"expert": 4, "fsdp": 2}, {"expert": 2, "tensor": 2, "fsdp": 2}])
def test_taking_and_putting_rows_equals_numpy(mesh_of, sizes):
    rng = np.random.default_rng(0)
    w, new = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 8, 4, 6), (4, 4, 6)))
    rows = ExpertRows(np.array([0, 0, 2, 2], np.int32), np.array([7, 1, 0, 1], np.int32))
    with mesh_of(**sizes):
        placed = jax.device_put(w, P(None, "expert", "fsdp", "tensor"))
        values = jax.device_put(new, P(None, ("fsdp", "expert") if sizes.get("expert") != 4 else "fsdp", "tensor"))
        taken = jax.jit(take_rows, static_argnums=())(placed, rows)
        put = jax.jit(put_rows)(placed, values, rows)
        one = jax.jit(with_rows)(placed[0], values[:3], jnp.array([5, 8, 0], jnp.int32))
        np.testing.assert_array_equal(taken, w[rows.period, rows.expert])
        assert jax.typeof(put).sharding.spec == jax.typeof(placed).sharding.spec
    expected = w.copy()
    expected[rows.period, rows.expert] = new
    np.testing.assert_array_equal(put, expected)
    expected = w[0].copy()
    expected[5], expected[0] = new[0], new[2]
    np.testing.assert_array_equal(one, expected)


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{}, pytest.param(SPLIT, marks=pytest.mark.slow)], ids=str)
def test_the_chosen_experts_and_nothing_else_are_trained(sizes):
    before, after, _, _ = run(**sizes)
    assert changed(before, after) == {(layer, e) for layer, ids in CHOSEN.items() for e in ids}


@pytest.mark.slow
def test_one_of_eight_experts_is_trained_for_fifty_steps():
    """Decay and clipping must not change the frozen experts."""
    config = tiny.model_config(num_hidden_layers=2)
    optimizer = tiny.OPTIMIZER.model_copy(update={"weight_decay": 0.5, "clip_norm": 0.1})
    with jax.set_mesh(single_device_mesh()):
        init, step = tiny.jitted(config, optimizer, trainable=experts_alone({1: (3,)}))
        state = init(0)
        before = arrays(state)
        for i in range(50):
            state, _ = step(state, tiny.placed(tiny.batch(config, i, rows=2)))
        after = arrays(state)
    assert changed(before, after, config) == {(1, 3)}
    kept = {name: x.shape for name, x in after.items() if "/mu/" in name}
    assert sorted(kept.values()) == [(1, 16, 32), (1, 32, 2, 16)]


@pytest.mark.slow
def test_a_sharded_model_learns_like_a_whole_one():
    whole, split = run(), run(**SPLIT)
    for one, other in zip(whole[2], split[2], strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
        np.testing.assert_allclose(one["grad_norm"], other["grad_norm"], rtol=1e-4)
    assert {n: x.shape for n, x in whole[1].items()} == {n: x.shape for n, x in split[1].items()}
    for name, x in whole[1].items():
        # float32 sums in another order; an update moves a parameter by up to 3e-3
        np.testing.assert_allclose(x, split[1][name], atol=5e-6, rtol=2e-5, err_msg=name)


@pytest.mark.slow
def test_gradients_equal_those_of_a_model_trained_whole():
    """The slow twin differentiates with respect to all parameters and takes the chosen rows."""
    with jax.set_mesh(single_device_mesh()):
        batch = {name: x[0] for name, x in tiny.placed(tiny.batch(CONFIG)).items()}
        state = tiny.jitted(CONFIG)[0](0)
        totals = tiny.PRETRAIN.totals(batch)
        context = Context(state.step, {}, {})

        def gradient(selection):
            def loss(trained):
                return tiny.PRETRAIN.loss(selection.with_overlays(trained, state.model, {})[0], batch, totals, context)[
                    0
                ]

            return jax.jit(jax.value_and_grad(loss))(selection.select(state.model, {}))

        some = Selection(("experts", "norms"), CHOSEN)
        (loss, found), (expected_loss, whole) = gradient(some), gradient(Selection())
    assert loss == expected_loss
    assert found.keys() == {name for name in whole if "norm" in name or "experts" in name}
    assert all(np.any(x != 0) for x in found.values())
    for name, x in found.items():
        rows = some.rows(parameters.by_name(CONFIG)[name], CONFIG)
        expected = np.asarray(whole[name])
        if rows is not None:
            expected = (expected if name.startswith("periods") else expected[None])[rows.period, rows.expert]
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-7, err_msg=name)


def test_the_clipping_norm_covers_trained_parameters_only():
    """Adam's first moment after one step is (1 - b1) times the gradient."""
    first = run()[2][0]
    assert 0 < first["grad_norm"] < 1
    np.testing.assert_allclose(first["mu"] / (1 - tiny.OPTIMIZER.b1), first["grad_norm"], rtol=1e-5)


# ---- plan ------------------------------------------------------------------------------------------------------------

KEYS = ["num_hidden_layers=5", "no_rope_layer_interval=2", "interleave_moe_layer_step=1", "num_local_experts=8",
        "vocab_size=64", "hidden_size=32", "num_attention_heads=8", "num_key_value_heads=4", "head_dim=4",
        "intermediate_size=16", "intermediate_size_mlp=32", "attention_chunk_size=8"]  # fmt: skip
WORDS = [f"model.{key}" for key in KEYS] + ["data.tokenizer=bytes"]
WORDS += ["trainable.parameters=[experts]", 'trainable.experts={"0": [6, 1], "2": [3], "3": [0], "4": [5, 7]}']


SAID = "frozen at random values; set model.init_from to start from trained weights"


@pytest.mark.parametrize("sizes", [{}, pytest.param(SPLIT, marks=pytest.mark.slow)], ids=str)
def test_optimizer_memory_equals_the_plan(sizes):
    mesh = [f"mesh.{axis}={size}" for axis, size in ({"data": 1} | sizes).items()]
    config = read_config("pretrain_tiny", [*WORDS, *mesh])
    assert config.model.network.layers == CONFIG.layers and config.trainable.selection().experts == CHOSEN
    found = plan(config)["bytes_per_device"]
    held = run(**sizes)[3]
    one = 3 * 32 * 16 * 4  # bytes of an expert
    assert found["optimizer"] == held == 6 * 2 * one // math.prod(sizes.values())
    assert found["gradients"] == 6 * one // math.prod(sizes.values())
    split = math.prod(sizes.get(axis, 1) for axis in ("expert", "tensor"))
    assert found["made_experts"] == 5 * 8 * one // split
    full = plan(read_config("pretrain_tiny", [*WORDS, *mesh, "model.remat=full"]))["bytes_per_device"]
    assert "made_experts" not in full
    assert found["chosen_experts"] == (6 + 2 * 2 + 2 * 1 + 2) * one // math.prod(sizes.values())


@pytest.mark.parametrize(
    ("words", "frozen"),
    [
        (["trainable.parameters=[router,attention,shared,experts,norms,embed,head]"], None),
        ([], "router, attention, shared, experts, norms, embed, head"),
        (["trainable.experts=null"], "router, attention, shared, norms, embed, head"),
    ],
)
def test_frozen_random_weights_are_reported(words, frozen, tmp_path, caplog, monkeypatch):
    from train.restore import StateParts, restore_or_start

    monkeypatch.setattr(StateParts, "fresh", lambda self: None)
    words = [*WORDS, *words, *(["trainable.experts=null"] if frozen is None else [])]
    parts = StateParts.of(read_config("pretrain_tiny", words), {})
    with jax.set_mesh(mesh := single_device_mesh()), caplog.at_level("WARNING"):
        restore_or_start(parts, CheckpointStore(tmp_path, CheckpointConfig()), mesh)
    assert caplog.messages == ([] if frozen is None else [f"{frozen}: {SAID}"])


# ---- config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainable.parameters=[expert]"], r"parameters.0: 'expert' is not one of .*; did you mean experts\?"),
        (["trainable.parameters=[]"], r"trainable.parameters: nothing is trained; expected some of router, attention"),
        (["trainable.parameters=[vision]"], r"parameters: the model has no parameters of vision; it has attention"),
        (["trainable.parameters=[head]"], r"experts: are chosen, but trainable.parameters leaves routed experts out"),
        (['trainable.experts={"5": [0]}'], r"trainable.experts.5: layer 5 is no mixture of experts; .* is 4"),
        (['trainable.experts={"4": [8]}'], r"trainable.experts.4: no expert 8: the layer's experts are 0 to 7"),
        (['trainable.experts={"4": [1, 1]}'], r"trainable.experts.4: 1 is there twice"),
        (['trainable.experts={"4": []}'], r"trainable.experts.4: "),
        (["trainable.experts={four: [1]}"], r"trainable.experts"),
        (["trainable.experts=nowhere.yaml"], r"trainable.experts: nowhere.yaml: cannot be read"),
    ],
)  # fmt: skip
def test_invalid_choices_are_refused(words, said):
    with pytest.raises(InputError, match=said):
        read_config("pretrain_tiny", [*WORDS, *words])


def test_experts_from_a_file(tmp_path):
    path = tmp_path / "experts.json"
    path.write_text(json.dumps({"share": 0.2, "experts": {"0": [6, 1], "4": [2]}}))
    config = read_config("pretrain_tiny", [*WORDS, f"trainable.experts={path}"])
    assert config.trainable.experts == {"0": (6, 1), "4": (2,)}
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match=r"trainable.experts: .*experts.json: holds no mapping `experts`"):
        read_config("pretrain_tiny", [*WORDS, f"trainable.experts={path}"])


# ---- choosing by use -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.75, 1.0])
def test_picking_the_fewest_experts_that_reach_a_share(share):
    parts = np.array([0.25, 0.0, 0.5, 0.125, 0.125])
    sets = [ids for n in range(1, 6) for ids in itertools.combinations(range(5), n) if parts[list(ids)].sum() >= share]
    found = pick(parts, share)
    assert tuple(found) in sets and len(found) == len(sets[0])


@pytest.fixture(scope="module")
def model_of_run(tmp_path_factory):
    """A run directory with fresh weights whose routers have opinions, and its config's words."""
    folder = tmp_path_factory.mktemp("experts")
    words = [*WORDS, "model.vocab_size=512", "data.batch_size=8", "data.sequence_length=16",
             f"data.cache_dir={folder / 'cache'}", "mesh.fsdp=2", "mesh.expert=2", "mesh.tensor=2"]  # fmt: skip
    config = read_config("pretrain_tiny", words).model.network
    with jax.set_mesh(single_device_mesh()):
        model = jax.jit(lambda: Maverick(config, tiny.RULES, rngs=nnx.Rngs(1)))()
        strong = {n: x * 20 if n.endswith("/router") else x for n, x in names.flatten(model).items()}
        model = names.unflatten(model, strong)
        store = CheckpointStore(folder / "run" / "checkpoints", CheckpointConfig())
        about = {"model": config.model_dump(mode="json")}
        store.save(0, {f"model/{n}": x for n, x in names.flatten(model).items()}, about, wait=True)
    return folder, words, model


@pytest.mark.slow
def test_scores_equal_counting_token_by_token(model_of_run, tmp_path):
    folder, words, model = model_of_run
    out = tmp_path / "chosen.yaml"
    found = choose_experts("pretrain_tiny", words, checkpoint=str(folder / "run"), tokens=200, share=0.5, out=str(out))
    data = read_config("pretrain_tiny", words).data
    dataset = open_dataset(data, "train", seed=0)
    rows = [dataset.row(i) for i in range(16)]  # two batches of 128 tokens
    fields = [jnp.stack([row[key] for row in rows]) for key in ("tokens", "positions", "segment_ids")]
    with jax.set_mesh(single_device_mesh()):
        fields = [jax.device_put(x, tiny.RULES("batch", "length")) for x in fields]
        look = jax.jit(lambda model, inputs: model.tapped(inputs, Taps(router=range(5))).routers)
        routers = look(model, Inputs(*fields))
    for layer, logits in enumerate(routers):
        gate, token = np.zeros(8), np.zeros(8)
        for row, segments in zip(np.array(logits), np.array(fields[2]), strict=True):
            for scores in row[segments > 0]:
                gate[scores.argmax()] += 1 / (1 + np.exp(-np.float64(scores.max())))
                token[scores.argmax()] += 1
        np.testing.assert_allclose(found["scores"]["gate"][layer], gate / gate.sum(), rtol=1e-5)
        np.testing.assert_allclose(found["scores"]["token"][layer], token / token.sum(), rtol=1e-6)
        assert found["experts"][str(layer)] == pick(gate / gate.sum(), 0.5)
    assert found["tokens"] == int(np.sum(np.array(fields[2]) > 0))
    assert any(len(ids) < 5 for ids in found["experts"].values())
    chosen = read_config("pretrain_tiny", [*words, f"trainable.experts={out}"]).trainable.experts
    assert chosen == {layer: tuple(ids) for layer, ids in found["experts"].items()}
    show(found)


def test_invalid_scoring_is_refused(model_of_run, tmp_path):
    folder, words, _ = model_of_run
    run = str(folder / "run")
    for how, said in [
        ({"share": 0.0, "checkpoint": run}, "--share: 0.0; expected more than 0 and at most 1"),
        ({}, "the config names no weights; set --checkpoint or model.init_from"),
        ({"out": str(tmp_path), "checkpoint": run}, "exists; name a new file"),
        ({"tokens": 0, "checkpoint": run}, "--tokens: 0; expected at least 1"),
    ]:
        with pytest.raises(InputError, match=said):
            choose_experts("pretrain_tiny", words, **how)
    with pytest.raises(InputError, match=r"--checkpoint: .*num_local_experts"):
        choose_experts("pretrain_tiny", [*words, "model.num_local_experts=16"], checkpoint=run)
