"""One declaration per parameter: everything follows when one line adds an array to a layer."""

import dataclasses
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from maverick_jax import ModelConfig, load_pretrained, parameters, save_pretrained
from maverick_jax.accounting.flops import flops_per_token
from maverick_jax.accounting.layout import Layout
from maverick_jax.accounting.memory import memory
from maverick_jax.checkpoint import names
from maverick_jax.errors import InputError
from maverick_jax.huggingface import names as huggingface_names
from maverick_jax.model.transformer import Maverick
from maverick_jax.model_source import open_source, shapes_of
from maverick_jax.param import build
from maverick_jax.parameters import Parameter
from maverick_jax.pretrained import abstract_model
from maverick_jax.sharding import MESH_AXES, ShardingRules, single_device_mesh
from tests.helpers import parameter_table, tiny
from tests.helpers.folders import store_run
from train.trainable.lora import LoraConfig
from train.trainable.selection import Selection

CONFIG = tiny.model_config(num_hidden_layers=6)  # one period of four layers, two in the tail
DEEP = CONFIG.model_copy(update={"num_hidden_layers": 10})  # two periods: a scan holds all gradients at once
SIZE = CONFIG.hidden_size * CONFIG.head_dim
WHERE = [f"periods/layer_{i}/attention/dummy" for i in range(4)] + [f"tail/layer_{i}/attention/dummy" for i in (0, 1)]


@pytest.fixture
def with_dummy(monkeypatch):
    """Adds a matrix to the attention of every layer, by one edit."""
    declared = parameters.attention
    dummy = Parameter("dummy", (CONFIG.hidden_size, CONFIG.head_dim), ("embed", None), "attention")
    monkeypatch.setattr(parameters, "attention", lambda config: [*declared(config), dummy])


def before() -> dict:
    """Counts of the model without the array, and bytes of the deep one."""
    return {"total": CONFIG.num_parameters(), "active": CONFIG.num_active_parameters(), "memory": held()}


def held(**sizes: int) -> dict[str, int]:
    layout = Layout(ShardingRules(), dict.fromkeys(MESH_AXES, 1) | sizes, batch_size=8, sequence_length=32)
    return memory(DEEP, layout)


WITHOUT = before()


def test_the_model_is_built_from_the_declarations(with_dummy):
    shapes = {name: x.shape for name, x in names.flatten(abstract_model(CONFIG, single_device_mesh())).items()}
    assert list(shapes.items()) == list(shapes_of(CONFIG).items()) and set(WHERE) <= set(shapes)
    assert shapes[WHERE[0]] == (1, *shapes[WHERE[-1]]) == (1, CONFIG.hidden_size, CONFIG.head_dim)
    axes = {
        n: p.get_metadata("axes")
        for n, p in names.flatten(
            abstract_model(CONFIG, single_device_mesh()), lambda node: isinstance(node, nnx.Param)
        ).items()
    }
    assert axes == {p.name: p.axes for p in parameters.of_model(CONFIG)}


def test_counts_plan_and_flops_follow(with_dummy):
    more = 6 * SIZE
    assert CONFIG.num_parameters() == WITHOUT["total"] + more
    assert CONFIG.num_active_parameters() == WITHOUT["active"] + more
    now = held()
    for part, bytes_of_one in (("weights", 4), ("gradients", 4), ("optimizer", 8)):
        assert now[part] == WITHOUT["memory"][part] + 10 * SIZE * bytes_of_one
    assert held(fsdp=2)["weights"] * 2 > now["weights"]  # norms are not split
    flops = flops_per_token(CONFIG, 32)["attention_projections"]
    assert flops == 6 * sum(p.size for p in parameters.of_model(CONFIG) if p.role == "attention")


def test_roles_selection_adapters_and_moments_follow(with_dummy):
    with jax.set_mesh(single_device_mesh()):
        model = jax.eval_shape(lambda: Maverick(CONFIG, rngs=nnx.Rngs(0)))
        chosen = jax.eval_shape(lambda model: Selection(("attention",)).select(model, {}), model)
        others = jax.eval_shape(lambda model: Selection(("norms", "mlp")).select(model, {}), model)
    assert set(WHERE) <= set(chosen) and not set(WHERE) & set(others)
    counted = Selection(("attention",)).parameters(CONFIG)
    assert {p.name: p.full_shape for p in counted} == {name: x.shape for name, x in chosen.items()}
    factors = {head.name: head.shape for head in LoraConfig(rank=2, targets=("attention",)).adapters(CONFIG)}
    assert factors[f"lora/{WHERE[0]}/a"] == (1, CONFIG.hidden_size, 2)
    assert factors[f"lora/{WHERE[-1]}/b"] == (2, CONFIG.head_dim)
    with jax.set_mesh(single_device_mesh()):
        moments = jax.eval_shape(lambda m: tiny.OPTIMIZER.build(tiny.STEPS, CONFIG).init(m, {}), model)
    assert any(name.endswith(WHERE[0]) for name in names.flatten(moments))


def test_checkpoints_follow_and_a_folder_needs_a_foreign_name(with_dummy, monkeypatch, tmp_path):
    with jax.set_mesh(single_device_mesh()):
        model = Maverick(CONFIG, rngs=nnx.Rngs(3))
    arrays = names.flatten(model)
    path = store_run(tmp_path / "run", CONFIG, arrays)
    assert set(WHERE) <= set(open_source(path).readers())
    assert_same(names.flatten(load_pretrained(path)), arrays)
    with pytest.raises(InputError, match=r"attention/dummy' has no Hugging Face Llama 4 counterpart"):
        save_pretrained(model, tmp_path / "unnamed", dtype="float32")
    foreign = ("self_attn.dummy.weight", huggingface_names.Linear(1))
    monkeypatch.setitem(huggingface_names.PER_LAYER, "attention/dummy", foreign)
    table = huggingface_names.table(shapes_of(CONFIG))
    assert [e.theirs for e in table if "dummy" in e.theirs] == [
        f"model.layers.{i}.self_attn.dummy.weight" for i in range(6)
    ]
    save_pretrained(model, tmp_path / "named", dtype="float32")
    assert_same(names.flatten(load_pretrained(tmp_path / "named")), arrays)


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)


# ---- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny_dense", "scout_17b_16e", "maverick_17b_128e"])
def test_counts_equal_the_closed_form(name):
    c = ModelConfig.from_name(name)
    D, moe = c.hidden_size, c.num_moe_layers
    attention = 2 * D * c.head_dim * (c.num_attention_heads + c.num_key_value_heads)
    expert = 3 * D * c.intermediate_size
    outside = 2 * c.vocab_size * D + D + c.num_hidden_layers * (attention + 2 * D)
    outside += (c.num_hidden_layers - moe) * 3 * D * c.intermediate_size_mlp
    outside += moe * (D * c.num_local_experts + expert)
    vision = _vision(c)
    assert c.num_parameters() == outside + moe * c.num_local_experts * expert + vision
    assert c.num_active_parameters() == outside + moe * c.num_experts_per_tok * expert


def _vision(config: ModelConfig) -> int:
    if (v := config.vision) is None:
        return 0
    D, F, A = v.hidden_size, v.intermediate_size, v.vision_output_dim
    layer = 4 * (D + 1) * D + (D + 1) * F + (F + 1) * D + 4 * D
    patches = v.patch_size**2 * v.num_channels * D + (v.grid**2 + 2) * D
    return patches + 4 * D + v.num_hidden_layers * layer + (F + A) * A + A * config.hidden_size


def test_a_model_of_many_different_layers_is_listed():
    config = CONFIG.model_copy(update={"interleave_moe_layer_step": 63, "no_rope_layer_interval": 64})
    config = ModelConfig(**config.model_copy(update={"num_hidden_layers": 4096}).model_dump())
    found = parameters.of_model(config)
    assert len(found) > 4096 * 9 and sum(p.size for p in found) == config.num_parameters()


def test_initial_values_are_drawn_in_the_order_of_a_table():
    table = [dataclasses.replace(p, name=f"w{i}") for i, p in enumerate(parameters.attention(CONFIG)[:2])]
    made = nnx.Module()
    with jax.set_mesh(single_device_mesh()):
        build(made, table, CONFIG, ShardingRules(), nnx.Rngs(5))
        rngs = nnx.Rngs(5)
        expected = [CONFIG.initializer_range * jax.random.normal(rngs.params(), p.shape) for p in table]
    for p, x in zip(table, expected, strict=True):
        np.testing.assert_allclose(getattr(made, p.name)[...], x, rtol=1e-6)
        assert math.prod(p.shape) == p.size


def test_counting_needs_no_jax():
    """Configs are read and parameters counted without importing JAX, which takes seconds."""
    code = (
        "import sys; from maverick_jax.config import ModelConfig; "
        "ModelConfig.from_name('maverick_17b_128e').num_parameters(); assert 'jax' not in sys.modules"
    )
    here = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(here)})


def test_the_table_in_the_docs_equals_the_declarations():
    document = parameter_table.DOCUMENT.read_text()
    assert document == parameter_table.written(document), "run `python -m tests.helpers.parameter_table`"
