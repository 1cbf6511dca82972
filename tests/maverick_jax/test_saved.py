"""What layers save, by config: lists, presets and their mistakes."""

import pytest

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.network import LayerSpec
from maverick_jax.saved import PRESETS, Saved

LISTS = {"keep": {"all_layers": ["attention"], "moe_layers": ["router"], "global_layers": ["qkv"]},
         "offload": {"local_layers": ["qkv"], "vision_layers": ["mlp"]}}  # fmt: skip


def of(remat) -> ModelConfig:
    return ModelConfig.from_name("tiny", remat=remat)


def test_a_layer_saves_the_union_of_the_lists_of_its_kinds():
    config = of(LISTS)
    local, moe_global = LayerSpec(moe=False, rope=True), LayerSpec(moe=True, rope=False)
    assert config.saved(local) == Saved(frozenset({"attention"}), frozenset({"qkv"}))
    assert config.saved(moe_global) == Saved(frozenset({"attention", "router", "qkv"}), frozenset())
    assert config.saved(None) == Saved(frozenset({"attention"}), frozenset({"mlp"}))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_short_for_its_lists(preset):
    lists = PRESETS[preset].model_dump(mode="json")
    assert [of(preset).saved(spec) for spec in of(lists).layers] == [of(lists).saved(spec) for spec in of(lists).layers]


def test_lists_survive_json_and_dumps():
    config = of(LISTS)
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config == ModelConfig(**config.model_dump())


@pytest.mark.parametrize(
    ("remat", "message"),
    [
        ("atention", "remat: 'atention' is not one of none, dots, attention, full; did you mean attention?"),
        ({"keep": {"all_layers": ["atention"]}}, "remat.keep.all_layers.0: 'atention' is not one of everything, input, "
         "qkv, attention, residual, router, mlp, received; did you mean attention?"),
        ({"keep": {"dense_layer": []}}, "remat.keep.dense_layer: unknown key; did you mean remat.keep.dense_layers?"),
        ({"kept": {}}, "remat.kept: unknown key; did you mean remat.keep?"),
        ({"offload": {"all_layers": ["everything"]}}, "remat: offload: everything has no name of its own"),
        ({"keep": {"all_layers": ["mlp"]}, "offload": {"moe_layers": ["mlp"]}},
         "remat: layers of all_layers, moe_layers, local_layers would both keep and offload mlp"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_error_with_the_nearest_choice(remat, message):
    with pytest.raises(InputError) as caught:
        of(remat)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1
