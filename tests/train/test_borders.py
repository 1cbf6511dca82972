"""What cannot be carried from stage to stage is refused when the config is read."""

import pytest

from maverick_jax.errors import InputError
from train.borders import MODEL
from train.config_files import read_run

TWO = "{base: pretrain_tiny, stages: [{name: one, steps: 3}, {name: two, steps: 2}]}"


@pytest.fixture
def two(tmp_path) -> str:
    """A config of two stages that change nothing."""
    (tmp_path / "two.yaml").write_text(TWO)
    return str(tmp_path / "two.yaml")


def refused(config: str, *words: str) -> str:
    with pytest.raises(InputError) as error:
        read_run(config, words)
    return str(error.value)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("model.hidden_size=64", "stages.1.model.hidden_size: 64; stage one has 128, and its parameters would not be "),
        ("model.vocab_size=300", "stages.1.model.vocab_size: 300; stage one has 512"),
        ("model.param_dtype=bfloat16", "stages.1.model.param_dtype: bfloat16; stage one has float32"),
        ("model.no_rope_layer_interval=2", "stages.1.model.no_rope_layer_interval: 2; stage one has 4"),
        ("model.balance={kind: loss_free_bias}", "stages.1.model.balance.kind: loss_free_bias; stage one has auxil"),
        (
            "model.latent={token_id: 3}",
            "stages.1.model.latent: latents; stage one has null, and its feedback is a parameter",
        ),
        ("data.shuffle=false", "stages.1.data.shuffle: False; stage one has True, and tokens and their order would"),
        ("data.seed=5", "stages.1.data.seed: 5; stage one has None"),
        ("data.held_out_fraction=0.2", "stages.1.data.held_out_fraction: 0.2; expected 0.1, as in the stages before"),
    ],
)
def test_a_change_of_the_parameters_or_the_tokens_is_refused(two, word, expected):
    assert f"command line: {expected}" in refused(two, f"stages.1.{word}")


def test_stages_may_have_other_numbers_of_passes(two):
    words = [f"stages.{i}.model.latent={{token_id: 3, passes: {i + 1}}}" for i in range(2)]
    assert [stage.model.latent.passes for stage in read_run(two, words).in_stages] == [1, 2]


def test_adapters_are_not_lost(two):
    lora = "stages.0.trainable={lora: {rank: 2}}"
    assert "stages.1.trainable.lora: null; stage one has adapters, which would be lost" in refused(two, lora)
    assert "stages.1.trainable.lora: another one; stage one has adapters" in refused(
        two, lora, "stages.1.trainable={lora: {rank: 3}}"
    )
    added = read_run(two, ["stages.1.trainable={lora: {rank: 2}}"])
    assert added.in_stages[1].trainable.lora is not None


def test_a_job_keeps_its_devices(two):
    words = ["stages.0.mesh={data: 2}", "stages.1.mesh={data: 4}"]
    assert "stages.1.mesh: 4 devices, and stage one has 2; a job keeps its devices" in refused(two, *words)
    read_run(two, [words[0], "stages.1.mesh={data: 1, fsdp: 2}"])


@pytest.mark.parametrize(
    "word",
    [
        "model={local_attention: sliding_window, attention_chunk_size: 32}",
        "model={rope_theta: 5000.0, rope_scaling: {factor: 2}}",
        "model={attn_temperature_tuning: false, floor_scale: 16}",
        "model={remat: full, compute_dtype: bfloat16}",
        "model.balance={weight: 0.5}",
        "trainable={parameters: [attention]}",
        "optimizer={kind: muon}",
        "data={sequence_length: 64, batch_size: 2, packing: best_fit}",
    ],
)
def test_what_parameters_survive_is_allowed(two, word):
    later = read_run(two, [f"stages.1.{word}"]).in_stages[1]
    assert later.place.name == "two" and {"rope_theta", "local_attention", "remat", "balance"} <= set(MODEL)
