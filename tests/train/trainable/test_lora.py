"""Low-rank adapters: a model with adapters equals the model with merged weights, in training and in exports."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.plan import plan
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.names import ADAPTERS, HEADS
from maverick_jax.checkpoint.store import CheckpointConfig, CheckpointStore
from maverick_jax.errors import InputError
from maverick_jax.model_source import open_source
from maverick_jax.pretrained import export, load_pretrained
from maverick_jax.sharding import make_mesh, single_device_mesh
from tests.helpers import tiny
from train.config_files import read_config
from train.objectives.base import Context
from train.state import abstract_state, init_state
from train.step import train_step
from train.trainable.config import TrainableConfig
from train.trainable.lora import LoraConfig

# two periods of a dense layer and a mixture of experts, and one dense layer more
CONFIG = tiny.model_config(num_hidden_layers=5, no_rope_layer_interval=2)
LORA = LoraConfig(rank=3, alpha=6.0, targets=("attention", "experts", "shared", "mlp"))
# with a small eps, rounding decides the sign of an update where a gradient is almost zero
SMOOTH = tiny.OPTIMIZER.model_copy(update={"eps": 1e-5})
OPTIMIZER = SMOOTH.build(tiny.STEPS, CONFIG, TrainableConfig(lora=LORA).selection())
STATE = {"config": CONFIG, "rules": tiny.RULES, "optimizer": OPTIMIZER, "objective": tiny.PRETRAIN,
         "heads": LORA.adapters(CONFIG)}  # fmt: skip
INIT = jax.jit(functools.partial(init_state, **STATE))
STEP = jax.jit(functools.partial(train_step, references={}, objective=tiny.PRETRAIN, optimizer=OPTIMIZER))
SPLIT = {"fsdp": 2, "expert": 2, "tensor": 2}


def mesh_of(sizes):
    return make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])


def arrays(tree) -> dict[str, np.ndarray]:
    return {name: np.array(x) for name, x in names.flatten(tree).items()}


def with_some_b(state):
    """The state with nonzero factors, as after training."""
    key = jax.random.key(7)
    draw = lambda name, x: 0.2 * jax.random.normal(key, x.shape, out_sharding=jax.typeof(x).sharding.spec)
    heads = {name: draw(name, x) if name.endswith("/b") else x for name, x in names.flatten(state.heads).items()}
    return names.unflatten(state.heads, heads)


def merged(model, heads, numpy=np):
    """The slow twin: W + alpha / rank A B as a whole matrix."""
    found = dict(model)
    prefix = ADAPTERS.removeprefix(HEADS)
    for name in {name.removeprefix(prefix).rpartition("/")[0] for name in heads}:
        w, a, b = model[name], heads[f"{prefix}{name}/a"], heads[f"{prefix}{name}/b"]
        axes, lead = "abcdef"[: w.ndim], ("periods/" in name) + ("experts_" in name)
        of_a, of_b = axes[: a.ndim - 1] + "r", axes[:lead] + "r" + axes[a.ndim - 1 :]
        found[name] = w + 2.0 * numpy.einsum(f"{of_a},{of_b}->{axes}", a, b)
    return found


@functools.cache
def trained(**sizes):
    """Arrays before and after three steps, and the metrics of each step."""
    with jax.set_mesh(mesh_of(sizes)):
        state, seen = INIT(0), []
        before = arrays(state)
        for i in range(3):
            state, metrics = STEP(state, tiny.placed(tiny.batch(CONFIG, i)))
            seen.append(float(metrics["loss"]))
        bytes_held = sum(
            x.addressable_shards[0].data.nbytes
            for name, x in names.flatten((state.opt_state, state.heads)).items()
            if x.ndim
        )
        return before, arrays(state), seen, bytes_held


# ---- forward and backward --------------------------------------------------------------------------------------------


def test_adapters_equal_the_merged_model():
    with jax.set_mesh(single_device_mesh()):
        state = INIT(0)
        heads = jax.jit(with_some_b)(state)
        tokens = jax.device_put(tiny.batch(CONFIG)["tokens"][0], tiny.RULES("batch", "length"))
        logits = jax.jit(lambda model, tokens: model.logits(tokens))
        beside = logits(OPTIMIZER.selection.with_adapters(state.model, heads), tokens)
        base = logits(state.model, tokens)
        whole = merged(arrays(state.model), arrays(heads))
        assert sum(np.any(whole[n] != x) for n, x in arrays(state.model).items()) == len(heads) / 2
        target = names.flatten(state.model)
        model = names.unflatten(state.model, {n: jax.device_put(x, target[n].sharding) for n, x in whole.items()})
        expected = logits(model, tokens)
    assert np.abs(np.array(base) - expected).max() > 0.05
    np.testing.assert_allclose(beside, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_gradients_equal_those_through_merged_weights():
    with jax.set_mesh(single_device_mesh()):
        state = INIT(0)
        heads = with_some_b(state)
        batch = {name: x[0] for name, x in tiny.placed(tiny.batch(CONFIG)).items()}
        totals, context = tiny.PRETRAIN.totals(batch), Context(state.step, {}, {})
        loss = lambda model: tiny.PRETRAIN.loss(model, batch, totals, context)[0]

        def beside(heads):
            return loss(OPTIMIZER.selection.with_adapters(state.model, heads))

        def through(heads):
            return loss(names.unflatten(state.model, merged(names.flatten(state.model), names.flatten(heads), jnp)))

        found, expected = (arrays(jax.jit(jax.grad(f))(heads)) for f in (beside, through))
    for name, x in expected.items():
        assert np.any(x != 0), name
        np.testing.assert_allclose(found[name], x, rtol=2e-3, atol=1e-6, err_msg=name)


# ---- training --------------------------------------------------------------------------------------------------------


def test_adapters_are_trained_and_the_model_is_unchanged():
    before, after, seen, _ = trained()
    assert seen[-1] < seen[0]
    for name, x in before.items():
        if name.startswith("model/"):
            np.testing.assert_array_equal(x, after[name], err_msg=name)
        elif name.startswith("heads/"):
            assert name.endswith("/a") == bool(np.any(x != 0)), name
            assert np.any(x != after[name]), name
    moments = {name.split("/mu/")[1] for name in after if "/mu/" in name}
    assert moments == {name for name in after if name.startswith("heads/")}


@pytest.mark.slow
def test_a_sharded_model_learns_like_a_whole_one():
    whole, split = trained(), trained(**SPLIT)
    np.testing.assert_allclose(whole[2], split[2], rtol=1e-5)
    for name, x in whole[1].items():
        # float32 sums in another order; an update moves a parameter by up to 3e-3
        np.testing.assert_allclose(x, split[1][name], atol=5e-6, rtol=2e-5, err_msg=name)


# ---- checkpoints and exports -----------------------------------------------------------------------------------------

ABOUT = {"model": CONFIG.model_dump(mode="json"), "adapters": LORA.model_dump(mode="json")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run directory of trained adapters, and the logits of its model."""
    path = tmp_path_factory.mktemp("lora") / "run"
    tokens = tiny.batch(CONFIG)["tokens"][0]
    with jax.set_mesh(single_device_mesh()):
        state, _ = STEP(INIT(0), tiny.placed(tiny.batch(CONFIG, 0)))
        heads = with_some_b(state)
        found = {n: x for n, x in names.flatten(state).items() if not n.startswith("heads/")}
        found |= {f"heads/{n}": x for n, x in names.flatten(heads).items()}
        CheckpointStore(path / "checkpoints", CheckpointConfig()).save(1, found, ABOUT, wait=True)
        placed = jax.device_put(tokens, tiny.RULES("batch", "length"))
        logits = jax.jit(lambda model: model.logits(placed))(OPTIMIZER.selection.with_adapters(state.model, heads))
    return path, tokens, np.array(logits), merged(arrays(state.model), arrays(heads))


@pytest.mark.slow
def test_loading_and_exporting_merge_adapters(saved, tmp_path):
    path, tokens, logits, whole = saved
    loaded = load_pretrained(path, mesh_of(SPLIT))
    for name, x in names.flatten(loaded).items():
        np.testing.assert_allclose(x, whole[name], rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(loaded.logits(tokens), logits, rtol=1e-4, atol=2e-5)
    export(path, tmp_path / "folder", dtype="float32")
    for name, x in names.flatten(load_pretrained(tmp_path / "folder")).items():
        np.testing.assert_allclose(x, whole[name], rtol=1e-5, atol=1e-6, err_msg=name)
    open_source(path).require_undamaged()


@pytest.mark.parametrize("lost", ["metadata", "arrays", "half"])
def test_lost_adapters_are_an_error(saved, tmp_path, lost):
    with jax.set_mesh(single_device_mesh()):
        found = names.flatten(INIT(0))
    if lost != "metadata":
        side = "" if lost == "arrays" else "a"
        found = {n: x for n, x in found.items() if not (n.startswith("heads/") and n.endswith(side))}
    about = {k: v for k, v in ABOUT.items() if k != "adapters" or lost != "metadata"}
    CheckpointStore(tmp_path / "checkpoints", CheckpointConfig()).save(1, found, about, wait=True)
    for use in (load_pretrained, lambda path: export(path, tmp_path / "folder")):
        with pytest.raises(InputError, match=r"metadata: adapters and the arrays heads/lora/... do not match"):
            use(tmp_path)


@pytest.mark.slow
def test_a_restored_state_continues_to_the_bit(tmp_path):
    with jax.set_mesh(single_device_mesh()):
        batches = [tiny.placed(tiny.batch(CONFIG, i)) for i in range(2)]
        state, _ = STEP(INIT(0), batches[0])
        store = CheckpointStore(tmp_path / "checkpoints", CheckpointConfig())
        store.save(1, names.flatten(state), ABOUT, wait=True)
        target = abstract_state(jax.sharding.get_mesh(), **STATE)
        restored = names.unflatten(target, store.restore(names.flatten(target))[1])
        whole, again = (arrays(STEP(s, batches[1])[0]) for s in (state, restored))
    for name, x in whole.items():
        np.testing.assert_array_equal(x, again[name], err_msg=name)


# ---- config and plan -------------------------------------------------------------------------------------------------

WORDS = ["model.vocab_size=64", "model.hidden_size=32", "model.num_hidden_layers=5", "model.num_attention_heads=8",
         "model.num_key_value_heads=4", "model.head_dim=4", "model.intermediate_size=16", "data.tokenizer=bytes",
         "model.intermediate_size_mlp=32", "model.no_rope_layer_interval=2", "model.num_local_experts=8",
         "trainable.lora={rank: 3, alpha: 6.0, targets: [attention, experts, shared, mlp]}"]  # fmt: skip


@pytest.mark.parametrize("sizes", [{}, pytest.param(SPLIT, marks=pytest.mark.slow)], ids=str)
def test_plan_counts_adapters_and_no_moments_of_the_model(sizes):
    config = read_config("pretrain_tiny", [*WORDS, *[f"mesh.{axis}={n}" for axis, n in ({"data": 1} | sizes).items()]])
    held = plan(config)["bytes_per_device"]
    assert held["optimizer"] == held["gradients"] == 0
    assert held["heads"] * 3 == trained(**sizes)[3] * 4  # weights and moments, and a gradient


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainable.lora.targets=[expert]"], r"trainable.lora.targets.0: 'expert' is .*; did you mean experts\?"),
        (["trainable.lora.rank=0"], r"trainable.lora.rank: "),
        (["trainable.parameters=[attention]"], r"trainable.parameters: attention has adapters instead"),
        (["trainable.parameters=[experts]"], r"trainable.parameters: experts has adapters instead"),
        (["model.num_local_experts=0"], r"trainable.lora.targets: the model has no parameters of experts"),
    ],
)
def test_invalid_adapters_are_refused(words, said):
    with pytest.raises(InputError, match=said):
        read_config("pretrain_tiny", [*WORDS, *words])
    norms = read_config("pretrain_tiny", [*WORDS, "trainable.parameters=[norms]"])
    assert norms.trainable.selection().roles == ("norms",)
