"""Frozen parameters do not change by a bit and have no moments, and the others are trained as usual."""

import functools

import jax
import numpy as np
import pytest

from maverick_jax import parameters
from maverick_jax.checkpoint import names
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.model_source import open_source
from maverick_jax.network import Balance, VisionConfig
from maverick_jax.parameters import ROLES, TEXT_ROLES, VISION_ROLES
from maverick_jax.pretrained import abstract_model, export
from maverick_jax.sharding import single_device_mesh
from maverick_jax.stack import name_in_layer
from tests.helpers import small_run, tiny
from train.config_files import read_config
from train.evaluate import evaluate
from train.run import main
from train.trainable.config import TrainableConfig

VISION = VisionConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=16,
    patch_size=4,
    vision_output_dim=8,
    image_token_index=63,
    boi_token_index=61,
    eoi_token_index=62,
)
CONFIG = tiny.model_config(vision=VISION)


def batch_with_images(step: int) -> dict[str, np.ndarray]:
    """A batch whose first row contains one image of one tile in its first document; no other token is `<|patch|>`."""
    fields = tiny.batch(CONFIG, step, rows=2)
    fields["tokens"][fields["tokens"] == VISION.image_token_index] = 1
    fields["tokens"][0, 0, 1 : 1 + VISION.tokens_per_tile] = VISION.image_token_index
    tiles = np.random.default_rng(step).integers(0, 256, (1, 2, 2, 3, 16, 16)).astype(np.uint8)
    return fields | {"tiles": tiles}  # all but the first tile of the first row are padding


@functools.cache
def trained(*roles: str) -> list[dict[str, np.ndarray]]:
    """The states before and after each of three steps."""
    arrays = lambda state: {name: np.array(x) for name, x in names.flatten(state).items()}
    with jax.set_mesh(single_device_mesh()):
        init, step = tiny.jitted(CONFIG, trainable=TrainableConfig(parameters=roles))
        state = init(0)
        states = [arrays(state)]
        for i in range(3):
            state, metrics = step(state, tiny.placed(batch_with_images(i)))
            assert np.isfinite(metrics["loss"]) and int(metrics["skipped"]) == 0
            states.append(arrays(state))
    return states


def test_a_frozen_encoder_is_unchanged_and_costs_no_moments():
    before, *_, after = trained(*TEXT_ROLES)
    assert not [name for name in after if name.startswith("opt_state/") and "/vision/" in name]
    for name in (n for n in before if n.startswith("model/")):
        changed = not np.array_equal(after[name], before[name])
        assert changed != name.startswith("model/vision/"), name


@pytest.mark.slow
def test_an_encoder_that_is_not_frozen_is_trained():
    before, *_, after = trained(*ROLES)
    moments = [name for name in after if "/mu/vision/" in name]
    vision = [name for name in before if name.startswith("model/vision/")]
    assert len(moments) == len(vision) > 20
    assert [name for name in vision if np.array_equal(after[name], before[name])] == []


@pytest.mark.parametrize(
    "role", [VISION_ROLES[0], *(pytest.param(role, marks=pytest.mark.slow) for role in VISION_ROLES[1:])]
)
def test_encoder_adapter_and_projector_are_trained_apart(role):
    before, *_, after = trained(role)
    of = {name: p.role for name, p in parameters.by_name(CONFIG).items()}
    changed = {of[name.removeprefix("model/")] for name in before if name.startswith("model/")
               and not np.array_equal(after[name], before[name])}  # fmt: skip
    assert changed == {role}


def test_freezing_does_not_change_the_first_update_of_the_rest():
    frozen, free = trained(*TEXT_ROLES)[1], trained(*ROLES)[1]
    for name in [n for n in frozen if n.startswith("model/") and not n.startswith("model/vision/")]:
        # the factor of clipping depends on all trained gradients, but Adam's first step does not depend on the factor
        np.testing.assert_allclose(frozen[name], free[name], atol=1e-5, err_msg=name)


def test_training_the_encoder_without_images_is_refused():
    for role in VISION_ROLES:
        with pytest.raises(InputError, match=rf"trainable.parameters: {role} is .* no source of `data` holds pictures"):
            read_config("pretrain_tiny", ["model=tiny_vision", f"trainable.parameters=[{role}]"])
        with pytest.raises(InputError, match=rf"trainable.lora.targets: {role} is .* no source of `data` holds pict"):
            read_config("pretrain_tiny", ["model=tiny_vision", f"trainable.lora.targets=[{role}]"])
    assert not {*VISION_ROLES} & {*read_config("pretrain_tiny", ["model=tiny_vision"]).trainable.selection().roles}


# ---- a whole run -----------------------------------------------------------------------------------------------------

SMALL = ["model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=4", "model.head_dim=8",
         "model.num_key_value_heads=2", "model.intermediate_size=16", "model.intermediate_size_mlp=32",
         "model.no_rope_layer_interval=2", "data.batch_size=8", "data.sequence_length=16", "run.steps=4",
         "run.eval_every=4", "run.eval_batches=1", "checkpoint.every=2", "logging.every=1", "logging.progress=false",
         "mesh.fsdp=2", "mesh.expert=2", "mesh.tensor=2", "trainable.parameters=[experts]",
         'trainable.experts={"1": [3, 5]}', "trainable.lora={rank: 2, alpha: 2.0}"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a whole run of chosen experts and adapters on attention, and the words of its config."""
    folder = tmp_path_factory.mktemp("selection")
    words = [*SMALL, f"data.cache_dir={folder / 'cache'}"]
    main("pretrain_tiny", [*words, f"run.dir={folder / 'whole'}"])
    return folder, words


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_bit(run):
    folder, words = run
    cut = small_run.cut_back(folder / "whole", folder / "cut", 2)
    main("pretrain_tiny", [*words, f"run.dir={cut}"])
    small_run.assert_same_run(folder / "whole", cut, 4)


@pytest.mark.slow
def test_a_run_whose_choice_changed_is_refused(run):
    folder, words = run
    before = small_run.contents(folder / "whole")
    for change, said in [
        ('trainable.experts={"1": [3, 6]}', r"trainable.experts.1: \[3, 5\] there, \[3, 6\] here"),
        ("trainable.experts=null", r"trainable.experts: {'1': \[3, 5\]} there, None here"),
        (
            "trainable.parameters=[experts, router]",
            r"parameters: \['experts'\] there, \['experts', 'router'\] here",
        ),
        ("trainable.lora.rank=3", r"trainable.lora.rank: 2 there, 3 here"),
        ("trainable.lora=null", r"trainable.lora: .* there, None here"),
    ]:
        with pytest.raises(InputError, match=said):
            main("pretrain_tiny", [*words, f"run.dir={folder / 'whole'}", change])
    assert small_run.contents(folder / "whole") == before


@pytest.mark.slow
def test_evaluation_and_export_use_the_trained_parameters(run, tmp_path):
    """The run's reported loss, with its adapters, equals the loss of the exported folder."""
    folder, words = run
    told = small_run.lines(folder / "whole")[-1]["eval_loss"]
    export(folder / "whole", tmp_path / "folder", dtype="float32")
    found = evaluate(str(tmp_path / "folder"), "pretrain_tiny", words)
    np.testing.assert_allclose(found["eval_loss"], told, rtol=1e-5)
    first = small_run.store(folder / "whole").readers("model/")
    exported = open_source(tmp_path / "folder").readers()
    whole = lambda reader: reader(tuple(slice(0, n) for n in reader.shape), np.dtype(np.float32))
    q = "periods/layer_0/attention/q"
    assert np.any(whole(exported[q]) != whole(first[q])), "adapters"


BEGINNINGS = {
    "vision/adapter": "adapter",
    "vision/projector": "projector",
    "vision/": "vision",
    "moe/router": "router",
    "moe/shared/": "shared",
    "moe/experts_": "experts",
    "attention/": "attention",
    "mlp/": "mlp",
    "attention_norm": "norms",
    "mlp_norm": "norms",
    "norm": "norms",
    "embed": "embed",
    "head": "head",
}
"""Prefix of a parameter's name in its layer -> role."""


def test_the_role_of_every_parameter_of_the_model():
    for name in ("tiny", "tiny_vision", "tiny_dense"):
        config = ModelConfig.from_name(name)
        with_bias = Balance(kind="loss_free_bias")
        config = config.model_copy(update={"balance": with_bias, "num_hidden_layers": 7})
        declared = parameters.by_name(config)
        found = {}
        for path in names.flatten(abstract_model(config, single_device_mesh())):
            rest = name_in_layer(path) or path
            found[path] = next(role for start, role in BEGINNINGS.items() if rest.startswith(start))
        assert found == {path: p.role for path, p in declared.items()}
        there = set(found.values())
        assert "attention" in there and ("vision" in there) == (config.vision is not None)
        assert declared["tail/layer_0/mlp_norm"].role == "norms"
        if config.num_local_experts:
            assert declared["periods/layer_1/moe/shared/gate"].role == "shared"
            assert declared["periods/layer_1/moe/router_bias"].role == "router"
        if config.vision:
            assert declared["vision/norm_pre/scale"].role == "vision"


def test_frozen_weights_have_no_gradient_to_compute():
    """Counts the floating-point operations of a compiled step: without products for weight gradients, the backward pass
    has half as many."""
    with jax.set_mesh(single_device_mesh()):
        config = tiny.model_config(num_hidden_layers=2, no_rope_layer_interval=2)
        batch = tiny.placed(tiny.batch(config, rows=2))

        def operations(*roles):
            init, step = tiny.jitted(config, trainable=TrainableConfig(parameters=roles))
            return step.lower(jax.eval_shape(init, 0), batch).compile().cost_analysis()["flops"]

        assert operations("norms") < 0.75 * operations(*TEXT_ROLES)
