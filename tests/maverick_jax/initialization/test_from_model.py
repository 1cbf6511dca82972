"""Models that are initialized from another model: with some of its layers, or with experts from its dense layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint import placement as placing
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.initialization.from_model import initial_weights
from maverick_jax.initialization.layer_map import Start, findings
from maverick_jax.latent import LatentConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.pretrained import abstract_model, load_pretrained, save_pretrained
from maverick_jax.sharding import single_device_mesh
from tests.helpers.folders import mesh_of_8, store_run
from tests.helpers.small_run import assert_same_run, cut_back, losses
from tests.parity.oracle import MODELS, case, our_model, random_parameters, random_tokens, shapes, variant
from train import restore, run
from train.batches import Feed
from train.config_files import read_config, resolved
from train.restore import StateParts, restore_or_start
from train.state import fresh_state

DENSE = MODELS["dense"]
"""8 layers of width 40; layers 3 and 7 attend globally."""
EXPERTS = variant(intermediate_size=40)
"""The same with 4 experts in every other layer."""
SEED = 3


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """`sources(name, kind)`: the oracle's model `name` on disk."""
    root = tmp_path_factory.mktemp("sources")

    def at(name: str, kind: str) -> str:
        path = root / kind / name
        if not path.exists() and kind == "run":
            store_run(path, case(name).config, case(name).parameters)
        elif not path.exists():
            path.parent.mkdir(exist_ok=True)
            save_pretrained(case(name).ours, path, dtype="float32")
        return str(path)

    return at


def begun(config: ModelConfig, start: Start, mesh=None, seed: int = SEED):
    return initial_weights(abstract_model(config, mesh or single_device_mesh()), start, seed)


def logits(model) -> np.ndarray:
    return np.asarray(model.logits(random_tokens(model.config, 8, 20)))


# ---- with reasoning heads and loops ----------------------------------------------------------------------------------


def test_heads_and_loops_beyond_the_source_change_no_logit(sources):
    more = {"reasoning_heads": {"scratch_heads": 2}, "loops": {"periods": (0, 1), "times": 1}}
    config = ModelConfig.model_validate(MODELS["dense"].model_dump() | more)
    student = begun(config, Start(sources("dense", "folder")))
    tokens = random_tokens(config, 8, 20)
    found = student.logits(tokens, marks=np.arange(160).reshape(8, 20) % 3)
    np.testing.assert_array_equal(found, case("dense").ours.logits(tokens))
    assert not names.flatten(student)["periods/layer_0/reasoning/schema/o"].any()
    assert names.flatten(student)["periods/layer_0/reasoning/schema/q"].any()


def test_heads_of_the_source_are_not_lost(sources, tmp_path):
    config = ModelConfig.model_validate(MODELS["dense"].model_dump() | {"reasoning_heads": {}})
    store_run(tmp_path / "heads", config, random_parameters(shapes(config)))
    with pytest.raises(InputError, match=r"model\.reasoning_heads: None here, .* in "):
        begun(MODELS["dense"], Start(str(tmp_path / "heads")))


# ---- experts from dense layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_upcycled_logits_equal_the_dense_models_to_the_bit(sources, kind):
    student = begun(EXPERTS, Start(sources("dense", kind), upcycle=True))
    np.testing.assert_array_equal(logits(student), logits(case("dense").ours))


@pytest.mark.slow
def test_the_weights_are_the_same_on_a_mesh(sources):
    start = Start(sources("dense", "folder"), upcycle=True)
    here, there = begun(EXPERTS, start), begun(EXPERTS, start, mesh_of_8())
    for (name, one), many in zip(names.flatten(here).items(), names.flatten(there).values(), strict=True):
        random = name.endswith(("router", "experts_in"))  # the compiler decides their last bit
        np.testing.assert_allclose(one, many, rtol=1e-6 if random else 0, err_msg=name)
    assert there.periods.layer_1.moe.experts_in[...].sharding.shard_shape((2, 4, 32, 2, 40)) == (2, 2, 16, 2, 20)
    dense = load_pretrained(sources("dense", "folder"), mesh_of_8())
    np.testing.assert_array_equal(logits(there), logits(dense))
    np.testing.assert_allclose(logits(there), logits(here), atol=1e-4)


def test_every_expert_that_got_a_token_learns(sources):
    config = variant(intermediate_size=40, num_local_experts=8, num_experts_per_tok=2)
    student = begun(config, Start(sources("dense", "run"), upcycle=True))
    tokens = random_tokens(config, 1, 2)

    def loss(model):
        hidden, stats = model.hidden(Inputs(tokens))
        scores = jax.nn.log_softmax(jnp.einsum("BTD,DV->BTV", hidden, model.output_weight()))
        return -jnp.mean(scores * jnp.arange(96.0)[None, None, :]), stats.load

    with jax.set_mesh(single_device_mesh()):
        differentiate = jax.jit(jax.grad(loss, has_aux=True))
        first, load = differentiate(student)
        moved = jax.tree.map(lambda x, g: x - 1e-5 * g, student, first)
        second, load_then = differentiate(moved)
    used, used_then = (np.asarray(x).reshape(2, 2, 8) > 0 for x in (load, load_then))  # period, layer, expert
    reached = lambda x: np.any(np.asarray(x) != 0, axis=tuple(range(2, x.ndim)))
    for i, layer in enumerate(("layer_1", "layer_3")):
        before, after = (getattr(gradient.periods, layer).moe for gradient in (first, second))
        np.testing.assert_array_equal(reached(before.experts_out[...]), used[:, i])
        assert used[:, i].any() and not used[:, i].all()
        assert not np.any(before.experts_in[...]) and not np.any(before.router[...])
        np.testing.assert_array_equal(reached(after.experts_in[...]), (used & used_then)[:, i])
        assert (used & used_then)[:, i].any() and np.any(after.router[...])


@pytest.mark.slow
def test_undetermined_parameters_equal_a_fresh_models(sources):
    overrides = [f"model={{init_from: {sources('dense', 'run')}, init_upcycle: true}}", f"run.seed={SEED}"]
    widths = ["model.num_local_experts=4", "model.intermediate_size=40", "model.interleave_moe_layer_step=2"]
    config = read_config("pretrain_tiny", [*overrides, *widths, "model.balance.kind=loss_free_bias"])
    start, mesh = config.start, single_device_mesh()
    with jax.set_mesh(mesh):
        fresh = fresh_state(SEED, **StateParts.of(config, {}).arguments()).model.periods.layer_1.moe
    network = config.model.network.model_copy(update={"compute_dtype": "float32"})
    found, other = (begun(network, start, seed=seed).periods.layer_1.moe for seed in (SEED, SEED + 1))
    np.testing.assert_allclose(found.router[...], fresh.router[...], rtol=1e-6)
    assert not np.any(found.router_bias[...]) and np.any(found.router[...] != other.router[...])
    mlp = case("dense").parameters
    copies = np.stack([mlp["periods/layer_1/mlp/gate"], mlp["periods/layer_1/mlp/up"]], axis=2)[:, None]
    np.testing.assert_allclose(found.experts_in[...] - copies, 0.1 * fresh.experts_in[...], atol=1e-6)


def test_a_wider_shared_expert_is_exact_and_learns_everywhere(sources):
    config = variant(intermediate_size=56)
    student = begun(config, Start(sources("dense", "folder"), upcycle=True))
    np.testing.assert_allclose(logits(student), logits(case("dense").ours), atol=2e-5)  # sums of 56 terms
    shared, dense = student.periods.layer_3.moe.shared, case("dense").parameters
    for name in ("gate", "up"):
        found = np.asarray(getattr(shared, name)[...])
        np.testing.assert_array_equal(found[..., :40], dense[f"periods/layer_3/mlp/{name}"])
        assert np.all(np.any(found[..., 40:] != 0, axis=1))
    np.testing.assert_array_equal(shared.down[...][:, :40], dense["periods/layer_3/mlp/down"])
    assert not np.any(shared.down[...][:, 40:])
    assert np.all(np.any(np.asarray(student.periods.layer_3.moe.experts_in[...])[..., 40:] != 0, axis=(2, 3)))


def test_a_model_may_take_some_experts_and_upcycle_others(tmp_path):
    source = variant(intermediate_size=40)
    parameters = random_parameters(shapes(source))
    path = str(store_run(tmp_path / "run", source, parameters))
    student = begun(variant(intermediate_size=40, interleave_moe_layer_step=1), Start(path, upcycle=True))
    np.testing.assert_array_equal(logits(student), logits(our_model(source, parameters)))


# ---- fewer layers ----------------------------------------------------------------------------------------------------


def layer_of(config: ModelConfig, parameters, layer: int) -> dict[str, np.ndarray]:
    """The parameters of one layer, sliced from those of the model."""
    period, index = divmod(layer, len(config.period))
    stacked = period < config.num_periods
    prefix = f"{'periods' if stacked else 'tail'}/layer_{index}/"
    found = {name.removeprefix(prefix): x for name, x in parameters.items() if name.startswith(prefix)}
    return {rest: x[period] if stacked else x for rest, x in found.items()}


CHOICES = [
    ("maverick", "run", (0, 5, 2, 7)),
    ("maverick", "folder", (4, 1, 2, 3, 0, 5)),
    ("six_layers_top_2", "folder", (4, 5, 0)),
    ("three_layers", "run", (2, 1, 0)),
    ("three_layers", "run", (2, 1)),
]


def test_weights_do_not_depend_on_the_size_of_read_blocks(sources, monkeypatch):
    config, start = variant(intermediate_size=56, num_hidden_layers=2), Start(sources("dense", "folder"), (0, 5), True)
    whole = names.flatten(begun(config, start))
    monkeypatch.setattr(placing, "BLOCK_BYTES", 4096)
    for name, array in names.flatten(begun(config, start)).items():
        np.testing.assert_array_equal(array, whole[name], err_msg=name)


@pytest.mark.parametrize("mesh", ["one_device", "eight"])
@pytest.mark.parametrize(("name", "kind", "layers"), CHOICES)
def test_layers_equal_the_chosen_layers_of_the_source(sources, name, kind, layers, mesh):
    source, parameters = case(name).config, case(name).parameters
    config = ModelConfig(**source.model_dump() | {"num_hidden_layers": len(layers)})
    student = begun(config, Start(sources(name, kind), layers), None if mesh == "one_device" else mesh_of_8())
    found = {n: np.asarray(x) for n, x in names.flatten(student).items()}
    for t, s in enumerate(layers):
        expected, here = layer_of(source, parameters, s), layer_of(config, found, t)
        assert here.keys() == expected.keys()
        for rest, value in expected.items():
            np.testing.assert_array_equal(here[rest], value, err_msg=f"layer {t}: {rest}")
    for whole in ("embed", "norm", "head"):
        np.testing.assert_array_equal(found[whole], parameters[whole])


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = store_run(tmp_path / "run", MODELS["three_layers"], case("three_layers").parameters)
    data = max((path / "checkpoints/7/arrays").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    data.write_bytes(damaged)
    with pytest.raises(InputError, match=r"checkpoints/7: model/.*: .*; `maverick doctor` shows which"):
        begun(variant(num_hidden_layers=1), Start(str(path), (0,)))


# ---- in a run --------------------------------------------------------------------------------------------------------

REFUSED = [
    (
        "dense",
        "num_hidden_layers: 4",
        r"model.num_hidden_layers: 4 here, 8 in .*/dense; set model.init_layers .*\[0, 2, 5, 7\]",
    ),
    ("dense", "init_layers: [0, 1, 2, 8]", r"model.init_layers: .*/dense has no layer 8; its layers are 0 to 7"),
    ("dense", "init_layers: [0, 1, -2, 3]", r"model.init_layers.*"),
    ("dense", "init_layers: []", r"model.init_layers"),
    (
        "dense",
        "init_layers: [0, 1, 7], num_hidden_layers: 4",
        r"model.init_layers: lists 3 layers; expected 4 \(model.num_hidden_layers\), such as \[0, 2, 5, 7\]",
    ),
    (
        "dense",
        "init_layers: [0, 1, 2, 5]",
        r"model.init_layers: layer 3 here is dense, without rotary embedding, layer 5 of .*/dense is dense, with "
        r"rotary embedding; layers that fit: 3, 7",
    ),
    ("maverick", "init_layers: [1, 1]", r"model.init_layers: layer 0 here is dense, .* fit: 0, 2, 4, 6"),
    ("dense", "no_rope_layer_interval: 2", r"model.no_rope_layer_interval: layer 1 here is dense, without"),
    ("scout", "interleave_moe_layer_step: 2", r"model.interleave_moe_layer_step: layer 0 .* no layer fits"),
    ("maverick", "num_local_experts: 0", r"model.num_local_experts: layer 1 here is dense, .* fit: 0, 2, 4, 6"),
    (
        "dense",
        "num_local_experts: 4, intermediate_size: 40, interleave_moe_layer_step: 2",
        r"model.init_upcycle: layers 1, 3, 5, 7 are mixtures of experts here and dense in .*/dense",
    ),
    ("dense", "init_upcycle: true", r"model.init_upcycle: no dense layer of .*/dense initializes a mixture"),
    (
        "dense",
        "init_upcycle: true, num_local_experts: 4, intermediate_size: 24",
        r"model.intermediate_size: 24 here; dense layers of .*/dense initialize shared experts; expected at least 40",
    ),
    ("dense", "init_layers: [0, 3], hidden_size: 64, no_rope_layer_interval: 2", r"model.hidden_size: 64 here, 32 in"),
    ("maverick", "num_experts_per_tok: 2", r"model.num_experts_per_tok: 2 here, 1 in .*/maverick"),
    ("maverick", "num_local_experts: 8", r"model.num_local_experts: 8 here, 4 in"),
    ("dense", "intermediate_size_mlp: 48", r"model.intermediate_size_mlp: 48 here, 40 in"),
]


@pytest.mark.parametrize(("name", "keys", "message"), REFUSED)
def test_sources_that_do_not_fit_are_refused(sources, name, keys, message):
    with pytest.raises(InputError, match=message):
        read_config("pretrain_tiny", [f"model={{init_from: {sources(name, 'run')}, {keys}}}"])


@pytest.mark.parametrize("key", ["init_layers: [0]", "init_upcycle: true", "init_vocabulary: true"])
def test_keys_without_init_from_are_refused(key):
    with pytest.raises(InputError, match=rf"model.{key.partition(':')[0]}: is of the model at model.init_from"):
        read_config("pretrain_tiny", [f"model={{base: tiny, {key}}}"])


def nll(model, batch) -> float:
    """Mean negative log-likelihood of the labels with weight, in NumPy."""
    found = np.asarray(model.logits(batch["tokens"][0], batch["positions"][0], batch["segment_ids"][0]), np.float64)
    log_sum = np.log(np.sum(np.exp(found), axis=-1))
    of_label = np.take_along_axis(found, np.asarray(batch["labels"][0])[..., None], axis=-1)[..., 0]
    return float(np.average(log_sum - of_label, weights=np.asarray(batch["loss_weights"][0])))


LAYERS = [0, 2, 5, 7]


@pytest.fixture(scope="module")
def bytes_run(tmp_path_factory):
    """(A dense model of 8 layers with the vocabulary of the byte tokenizer, its parameters, and overrides of a run with
    4 of the layers, every other one with experts)."""
    source = ModelConfig(**DENSE.model_dump() | {"vocab_size": 512})
    parameters = random_parameters(shapes(source))
    path = store_run(tmp_path_factory.mktemp("bytes") / "dense", source, parameters)
    keys = "num_local_experts: 4, intermediate_size: 40, interleave_moe_layer_step: 2, init_upcycle: true"
    computed = "compute_dtype: float32, balance: {kind: none}"
    words = [
        f"model={{init_from: {path}, init_layers: {LAYERS}, {keys}, {computed}}}",
        *("run.steps=2", "run.eval_every=0", "checkpoint.every=1", "data.sequence_length=16", "logging.every=1"),
    ]
    return source, parameters, words


@pytest.fixture(scope="module")
def first_loss(bytes_run) -> float:
    """The loss of the four layers, sliced by the test, on the first batch."""
    source, parameters, words = bytes_run
    cut = [layer_of(source, parameters, layer) for layer in LAYERS]
    pruned = {f"periods/layer_{i}/{rest}": x[None] for i, layer in enumerate(cut) for rest, x in layer.items()}
    pruned |= {name: parameters[name] for name in ("embed", "norm", "head")}
    model = our_model(source.model_copy(update={"num_hidden_layers": 4}), pruned)
    return nll(model, first_batch(read_config("pretrain_tiny", words)))


def first_batch(config):
    with jax.set_mesh(single_device_mesh()), Feed.open(config).batches(0, 1) as batches:
        return next(iter(batches))


@pytest.mark.slow
def test_a_run_starts_with_the_chosen_layers_and_resumes_from_its_checkpoints(
    bytes_run, first_loss, tmp_path, monkeypatch
):
    config = read_config("pretrain_tiny", bytes_run[2])
    assert config.model.num_hidden_layers == 4 and config.model.num_moe_layers == 2
    assert resolved(config)["model"]["init_layers"] == LAYERS
    mesh, store = single_device_mesh(), CheckpointStore(tmp_path / "checkpoints")
    with jax.set_mesh(mesh):
        state = restore_or_start(StateParts.of(config, {}), store, mesh)
        store.save(1, names.flatten(state), {}, wait=True)
        monkeypatch.setattr(restore, "initial_weights", lambda *_: pytest.fail("a run that goes on began again"))
        again = restore_or_start(StateParts.of(config, {}), store, mesh)
    assert nll(state.model, first_batch(config)) == pytest.approx(first_loss, rel=1e-6)
    jax.tree.map(np.testing.assert_array_equal, again.model, state.model)


@pytest.mark.slow
def test_a_killed_run_with_chosen_layers_ends_the_same(bytes_run, first_loss, tmp_path):
    run.main("pretrain_tiny", [*bytes_run[2], f"run.dir={tmp_path / 'whole'}"])
    assert losses(tmp_path / "whole")[0] == pytest.approx(first_loss, rel=1e-6)
    killed = cut_back(tmp_path / "whole", tmp_path / "killed", 1)
    run.main("pretrain_tiny", [*bytes_run[2], f"run.dir={killed}"])
    assert_same_run(tmp_path / "whole", killed, step=2)


@pytest.mark.parametrize("layers", [None, (0, 0, 2, 3, 4, 5, 6, 7)])
def test_a_model_with_latent_thoughts_begins_as_a_plain_one(layers, sources):
    """Logits without latents are the plain model's to the bit, whether all layers are copied or chosen."""
    thinking = DENSE.model_copy(update={"latent": LatentConfig(token_id=95)})
    start = Start(sources("dense", "folder"), layers)
    with jax.set_mesh(single_device_mesh()):
        found = initial_weights(abstract_model(thinking, single_device_mesh()), start, SEED)
        plain = initial_weights(abstract_model(DENSE, single_device_mesh()), start, SEED)
    assert not np.asarray(found.latent.matrix[...]).any() and not np.asarray(found.latent.gain[...]).any()
    tokens = np.minimum(random_tokens(DENSE, 2, 16), 94)
    np.testing.assert_array_equal(np.asarray(found.logits(tokens)), np.asarray(plain.logits(tokens)))


def test_trained_latents_are_not_dropped_in_silence():
    thinking = DENSE.model_copy(update={"latent": LatentConfig(token_id=95)})
    found = findings(DENSE, thinking, Start("somewhere"))
    assert found == [("model.latent", f"None here, {thinking.latent} in somewhere")]
    assert findings(thinking, DENSE, Start("somewhere")) == findings(thinking, thinking, Start("somewhere")) == []
