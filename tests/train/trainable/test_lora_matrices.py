"""Adapters of single matrices, by their names, and their scale."""

import math

import pytest

from maverick_jax.checkpoint.adapters import Adapters, AdapterSettings
from maverick_jax.errors import InputError
from tests.helpers import tiny
from train.config_files import read_config
from train.identity import metadata, refuse_other_run
from train.trainable.lora import LoraConfig

CONFIG = tiny.model_config(num_hidden_layers=5, no_rope_layer_interval=2)


def adapted(*targets, config=CONFIG):
    return {p.name.split("/", 2)[2] for p in LoraConfig(targets=targets).adapted(config)}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("q_proj", "v_proj"), {"attention/q", "attention/v"}),
        (("gate_proj",), {"mlp/gate", "moe/shared/gate"}),
        (("down_proj", "o_proj"), {"mlp/down", "moe/shared/down", "attention/o"}),
        (("experts_out",), {"moe/experts_out"}),
        (("shared", "k_proj"), {"moe/shared/gate", "moe/shared/up", "moe/shared/down", "attention/k"}),
        (("attention", "q_proj"), {"attention/q", "attention/k", "attention/v", "attention/o"}),
    ],
)
def test_a_matrix_is_adapted_in_every_layer_that_has_it(targets, expected):
    assert adapted(*targets) == expected
    names = {head.name for head in LoraConfig(targets=targets).adapters(CONFIG)}
    assert {name.rpartition("/")[0].split("/", 3)[3] for name in names} == expected


WORDS = ["trainable.lora={targets: [q_proj]}", "model.num_hidden_layers=4"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainable.lora.targets=[q_prj]"], r"'q_prj' is not one of .*; did you mean q_proj\?"),
        (["trainable.parameters=[attention]"], r"trainable.parameters: attention has adapters instead"),
        (["trainable={lora: {targets: [up_proj]}, parameters: [norms, shared]}"], r"shared has adapters instead"),
        (["trainable.lora.targets=[experts_in]", "model.num_local_experts=0"], r"the model has no parameters of exp"),
        (["trainable.lora={targets: [experts_out], dropout: 0.1}"], r"trainable.lora.dropout: .*no inputs to drop"),
        (["trainable.lora.dropout=1"], r"trainable.lora.dropout: "),
    ],
)
def test_targets_that_cannot_be(words, said):
    with pytest.raises(InputError, match=said):
        read_config("pretrain_tiny", [*WORDS, *words])


def test_rslora_divides_by_the_root_of_the_rank():
    assert AdapterSettings(rank=16, alpha=32.0).scale == 2.0
    assert AdapterSettings(rank=16, alpha=32.0, rslora=True).scale == 8.0
    config = read_config("pretrain_tiny", ["trainable.lora={rank: 3, alpha: 6.0, rslora: true}"])
    assert config.trainable.selection().adapters.scale == pytest.approx(6 / math.sqrt(3))


def test_a_checkpoint_says_its_scale_and_an_earlier_one_has_no_rslora():
    arrays = {"heads/lora/x/a": {"shape": [4, 3], "dtype": "float32"}}
    arrays["heads/lora/x/b"] = {"shape": [3, 4], "dtype": "float32"}
    scale = lambda record: Adapters.of({"arrays": arrays, "adapters": record}, "here").scale
    assert scale({"rank": 3, "alpha": 6.0, "targets": ["attention"]}) == 2.0
    assert scale(LoraConfig(rank=3, alpha=6.0, rslora=True).record()) == pytest.approx(6 / math.sqrt(3))


class Newest:
    """A store whose newest checkpoint has this metadata."""

    copies = None

    def __init__(self, meta):
        self.known_steps, self.meta = (lambda: [1]), (lambda step: meta)


@pytest.mark.parametrize("word", ["rslora=true", "dropout=0.1", "rank=4", "targets=[k_proj]"])
def test_a_run_keeps_its_adapters_settings_also_those_that_earlier_versions_lacked(word):
    about = lambda *words: metadata(read_config("pretrain_tiny", [*WORDS, *words]), "data", {})
    there = about()
    there["adapters"] = {key: there["adapters"][key] for key in ("rank", "alpha", "targets")}
    refuse_other_run(read_config("pretrain_tiny", WORDS), about(), Newest(there))
    config = read_config("pretrain_tiny", [*WORDS, f"trainable.lora.{word}"])
    with pytest.raises(InputError, match=rf"trainable.lora.{word.partition('=')[0]}: .* there, .* here"):
        refuse_other_run(config, metadata(config, "data", {}), Newest(there))
