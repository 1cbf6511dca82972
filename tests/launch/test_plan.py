"""Compares closed forms with the real model and with manual counts, and checks the plan's verdict."""

import dataclasses
import math

import jax
import pytest
from flax import nnx

from launch.plan import plan, render
from maverick_jax import parameters
from maverick_jax.accounting.communication import by_kind, communication, transfers
from maverick_jax.accounting.devices import DEVICES, device_of
from maverick_jax.accounting.flops import attended_keys, flops_per_token, train_flops_per_token
from maverick_jax.accounting.layout import Layout
from maverick_jax.accounting.memory import memory
from maverick_jax.accounting.period import layer_bytes
from maverick_jax.checkpoint.names import flatten
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from maverick_jax.network import LayerSpec
from maverick_jax.parameters import Parameter
from maverick_jax.settings import shipped
from maverick_jax.sharding import MESH_AXES, ShardingRules, abstract_mesh
from tests.helpers import size_table
from train.config_files import read_config, read_run
from train.flops import flops_of_run

TINY_SHAPE = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    intermediate_size=512,
    intermediate_size_mlp=1024,
    num_local_experts=8,
    interleave_moe_layer_step=2,
    attention_chunk_size=256,
)
BIG_SHAPE = TINY_SHAPE.model_copy(
    update={
        "vocab_size": 8192,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "head_dim": 64,
        "intermediate_size": 1024,
        "intermediate_size_mlp": 2048,
        "num_local_experts": 16,
        "attention_chunk_size": 512,
    }
)


def layout(**sizes: int) -> Layout:
    return Layout(ShardingRules(), dict.fromkeys(MESH_AXES, 1) | sizes, batch_size=32, sequence_length=512)


def abstract(config: ModelConfig, **sizes: int):
    """The real model's abstract arrays by name."""
    with jax.sharding.use_abstract_mesh(abstract_mesh(dict.fromkeys(MESH_AXES, 1) | sizes)):
        model = jax.eval_shape(lambda: Maverick(config, ShardingRules(), rngs=nnx.Rngs(0)))
    return flatten(model)


# ---- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped.model_names())
def test_the_table_of_parameters_equals_the_real_model(name):
    config = ModelConfig.from_name(name)
    declared = {p.name: p.full_shape for p in parameters.of_model(config)}
    assert declared == {path: leaf.shape for path, leaf in abstract(config).items()}
    assert sum(math.prod(shape) for shape in declared.values()) == config.num_parameters()


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2, "expert": 4}, {"expert": 2, "tensor": 2}, {"data": 2, "fsdp": 4}])
def test_stored_elements_per_device_equal_those_of_the_real_shardings(sizes):
    config = ModelConfig.from_name("tiny")
    real = sum(leaf.size // _parts(leaf.sharding.spec, sizes) for leaf in abstract(config, **sizes).values())
    held = memory(config, layout(**sizes))
    assert held["weights"] == real * 4
    assert held["optimizer"] == real * 8


def test_frozen_parameters_have_no_gradients_and_no_moments():
    config = ModelConfig.from_name("tiny_vision", num_hidden_layers=8)  # a scan, which holds all gradients at once
    text = [p for p in parameters.of_model(config) if not p.name.startswith("vision/")]
    vision = config.num_parameters() - config.model_copy(update={"vision": None}).num_parameters()
    held = memory(config, layout(), trained=text)
    assert held["weights"] == config.num_parameters() * 4
    assert held["optimizer"] == (config.num_parameters() - vision) * 8
    assert held["gradients"] == (config.num_parameters() - vision) * 4


def test_a_model_that_is_frozen_as_a_whole_holds_its_weights_and_no_gradients():
    """Not at the loss, nor in sums over microbatches."""
    config = ModelConfig.from_name("tiny").model_copy(update={"vocab_size": 202048})
    assert (
        memory(config, layout())["loss"] - memory(config, layout(), trained=[])["loss"]
        == 202048 * 4 * config.hidden_size
    )
    halves = dataclasses.replace(layout(), accumulation_steps=2)
    assert memory(config, halves)["gradients"] > 0 == memory(config, halves, trained=[])["gradients"]


def _parts(spec, sizes: dict[str, int]) -> int:
    parts = 1
    for entry in spec:
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            parts *= sizes.get(axis, 1)
    return parts


def test_the_router_bias_is_counted_if_the_model_has_one():
    config = ModelConfig.from_name("tiny")
    with_bias = config.model_copy(update={"balance": config.balance.model_copy(update={"kind": "loss_free_bias"})})
    extra = sum(p.size for p in parameters.of_model(with_bias)) - sum(p.size for p in parameters.of_model(config))
    assert extra == config.num_moe_layers * config.num_local_experts


# ---- FLOPs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("local", "reach"),
    [("chunked", None), *((local, n) for local in ("chunked", "sliding_window") for n in (1, 3, 8, 11, 64))],
)
@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("length", [1, 8, 13])
def test_attended_keys_equal_those_of_an_explicit_mask(local, reach, rope, length):
    config = TINY_SHAPE.model_copy(update={"attention_chunk_size": reach, "local_attention": local})
    bounded = rope and reach is not None

    def visible(q: int, k: int) -> bool:
        near = not bounded or (q // reach == k // reach if local == "chunked" else q - k < reach)
        return k <= q and near

    drawn = sum(visible(q, k) for q in range(length) for k in range(length))
    assert attended_keys(config, LayerSpec(moe=False, rope=rope), length) == drawn


def test_published_count_of_maverick():
    """108.9 GFLOP per token at 8,192 tokens. Published counts exclude the router, which is 0.09 of ours."""
    flops = flops_per_token(ModelConfig.from_name("maverick_17b_128e"), 8192)
    published = {
        "attention_projections": 18.1,
        "dense": 36.2,
        "shared_experts": 18.1,
        "routed_experts": 18.1,
        "attention_scores": 12.1,
        "head": 6.2,
    }
    for part, gflop in published.items():
        assert flops[part] / 1e9 == pytest.approx(gflop, abs=0.05)
    assert (sum(flops.values()) - flops["router"]) / 1e9 == pytest.approx(108.9, abs=0.05)


def test_counts_of_the_benchmark_shapes():
    assert train_flops_per_token(TINY_SHAPE, 512) * 512 * 8 / 1e12 == pytest.approx(0.131, abs=0.0005)
    assert train_flops_per_token(BIG_SHAPE, 1024) * 1024 * 8 / 1e12 == pytest.approx(1.883, abs=0.0005)


def test_flops_against_six_per_active_parameter():
    """Without attention scores, there are 6 FLOPs per active parameter outside embedding and norms."""
    for name in shipped.model_names():
        config = ModelConfig.from_name(name)
        flops = flops_per_token(config, 1024)
        norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
        matmul = config.num_active_parameters() - config.vocab_size * config.hidden_size - norms
        assert sum(flops.values()) - flops["attention_scores"] == 6 * matmul


# ---- memory and communication ----------------------------------------------------------------------------------------


def test_memory_falls_with_devices_and_recomputation():
    config = ModelConfig.from_name("tiny").model_copy(update={"compute_dtype": "bfloat16"})
    by_remat = {
        remat: memory(config.model_copy(update={"remat": remat}), layout())["activations"]
        for remat in ("full", "attention", "dots", "none")
    }
    assert list(by_remat.values()) == sorted(by_remat.values())
    assert by_remat["full"] == 4 * 32 * 512 * 128 * 2  # the input of each layer, in bfloat16
    alone, spread = memory(config, layout()), memory(config, layout(fsdp=2, expert=4))
    assert alone["activations"] == 8 * memory(config, layout(fsdp=8))["activations"]
    room = layout(fsdp=2, expert=4).exchange(config)
    # 2 MoE layers keep the rows that came from 4 devices, in bfloat16
    assert room is not None and spread["activations"] == alone["activations"] // 8 + 2 * 4 * room.total * 128 * 2
    for part in ("weights", "optimizer", "gradients"):
        assert spread[part] < alone[part] / 6


def test_accumulation_halves_activations_and_doubles_gradients():
    config = ModelConfig.from_name("tiny", num_hidden_layers=8)
    whole, halves = layout(), dataclasses.replace(layout(), accumulation_steps=2)
    once, twice = memory(config, whole), memory(config, halves)
    assert 2 * twice["activations"] == once["activations"]
    assert twice["gradients"] == 2 * once["gradients"]
    assert twice["attention"] == once["attention"] // 2


def test_communication_equals_manual_counts():
    config = ModelConfig.from_name("tiny").model_copy(update={"remat": "full"})
    alone = communication(config, layout())
    assert set(alone.values()) == {0}
    replicas = communication(config, layout(data=2))
    assert replicas == {**alone, "all_reduce": config.num_parameters() * 4}  # 2 (n - 1) / n of the gradients
    experts, tokens = communication(config, layout(expert=2)), 32 * 512 // 2
    columns = 2 * tokens * 128 * 4 // 2  # of embeddings, forward and backward; half of them stay
    # 2 MoE layers of 4 experts with float32 rows of 128: sent there twice and back, and gradients there and back, with
    # room for 6 standard deviations; how many rows of which expert, twice
    room = 8 * math.ceil((tokens / 2 + 6 * math.sqrt(tokens / 2)) / 8)
    assert experts["all_to_all"] - columns == 2 * (5 * room * 128 * 4 + 2 * 4 * 4)
    kept = communication(config.model_copy(update={"remat": "attention"}), layout(expert=2))
    assert experts["all_to_all"] - kept["all_to_all"] == 2 * (room * 128 * 4 + 4 * 4)
    sharded = communication(config, layout(fsdp=2))
    assert sharded["all_to_all"] == columns
    head, ids = config.vocab_size * config.hidden_size * 4 // 2, tokens * 4
    # the head is gathered once, and the ids of tokens before their lookup
    assert sharded["gather"] - ids + head == 2 * sharded["reduce_scatter"] > 2 * head
    half = communication(config.model_copy(update={"compute_dtype": "bfloat16"}), layout(fsdp=2))
    assert half["reduce_scatter"] == sharded["reduce_scatter"] / 2
    # norms and routers: replicated, and summed in float32
    assert half["all_reduce"] == sharded["all_reduce"] > 0


def test_frozen_weights_are_gathered_and_send_no_gradients():
    config = ModelConfig.from_name("tiny")
    sharded = communication(config, layout(fsdp=2))
    frozen = communication(config, layout(fsdp=2), trained=[])
    assert frozen["gather"] == sharded["gather"] and frozen["reduce_scatter"] == frozen["all_reduce"] == 0
    assert 2 * frozen["all_to_all"] == sharded["all_to_all"] > 0  # embeddings, and no gradients of them


def test_factors_beside_a_model_send_what_its_parameters_would():
    config = ModelConfig.from_name("tiny")
    a = Parameter("a", (2, 128, 8), (None, "embed", None), "attention")  # sharded
    b = Parameter("b", (2, 8, 64), (None, None, "heads"), "attention")  # replicated
    with_factors, without = (by_kind(transfers(config, layout(fsdp=2), [], beside)) for beside in ([a, b], []))
    more = {kind: n - without[kind] for kind, n in with_factors.items() if n != without[kind]}
    half = a.size // 2 * 4
    assert more == {"gather": 2 * half, "reduce_scatter": half, "all_reduce": b.size * 4}


def test_a_pipeline_shares_periods_and_repeats_their_transfers():
    """Two stages of one period each, and 16 rows on each device, in 4 microbatches: 5 turns."""
    config = ModelConfig.from_name("tiny").model_copy(update={"num_hidden_layers": 8, "remat": "full"})
    rules = ShardingRules(microbatches=4)
    alone = layout(fsdp=2)
    staged = dataclasses.replace(layout(fsdp=2, pipeline=2), rules=rules)
    assert (staged.stages, staged.microbatches, staged.turns, staged.share) == (2, 4, 5, 5 / 8)
    stacked = [p for p in parameters.of_model(config) if p.stacked]
    assert 2 * staged.stored(stacked) == alone.stored(stacked)
    once, twice = memory(config, alone), memory(config, staged)
    stream = 16 * 512 * 128 * 4
    assert once["activations"] == 8 * stream
    # the inputs of 4 layers in 5 turns of 4 rows; what enters and leaves in each turn; the result
    assert twice["activations"] == (8 * 5 / 8 + 2 * 5 / 4 + 1) * stream
    worked = [layer_bytes(config, config.layer(0), part)["attention"] for part in (alone, staged.in_stage)]
    assert worked[0] == 4 * worked[1] > 0
    one, more = communication(config, alone), communication(config, staged)
    # gradients of half the periods, but in each of 5 turns
    own = sum(alone.held(p) * 4 for p in parameters.of_model(config) if not p.stacked and "embed" in p.axes)
    assert more["reduce_scatter"] - own == (one["reduce_scatter"] - own) * 5 / 2
    assert (one["permute"], more["permute"]) == (0, 2 * 5 * stream // 4)


def test_the_plan_of_a_pipeline_says_its_bubble():
    words = ["mesh.pipeline=2", "model.num_hidden_layers=8", "run.hardware=h200", "mesh.data=1"]
    found = plan(read_config("pretrain_tiny", words))
    assert found["schedule"] == {"stages": 2, "microbatches": 8, "bubble": 1 / 9}
    assert "2 stages, 8 microbatches: bubble 11.1%" in render(found)
    alone = plan(read_config("pretrain_tiny", [*words[1:], "mesh.data=2"]))
    assert alone["schedule"] is None and "bubble" not in render(alone)
    # 2 devices share the same FLOPs, but 9 turns do the work of 8, and both multiply by the output matrix
    assert found["seconds"]["flops_done"] > 9 / 8 * alone["seconds"]["flops_done"]


def test_devices_are_found_by_their_jax_names():
    names = {
        "NVIDIA H200": "h200",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA A100-SXM4-40GB": "a100_40",
        "NVIDIA A100-SXM4-80GB": "a100_80",
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v6 lite": "v6e",
    }
    for kind, name in names.items():
        assert device_of(kind) is DEVICES[name]
    assert device_of("cpu") is None


# ---- the plan --------------------------------------------------------------------------------------------------------


def test_plan_of_maverick_on_its_cluster():
    found = plan(read_config("pretrain_maverick_h200x512"))
    assert found["parameters"] == {"total": 400_711_848_960, "active": 17_184_691_200}
    assert (found["devices"], found["fits"]) == (512, True)
    held = found["bytes_per_device"]
    # 16 bytes per parameter minus 2 for the first moment, sharded over all devices except for norms and routers
    assert held["weights"] + held["optimizer"] + held["gradients"] == pytest.approx(
        400.7e9 * 14 / 512 + 24 * 5120 * 128 * 14, rel=0.001
    )
    assert held["total"] == sum(n for name, n in held.items() if name not in ("total", "limit")) < held["limit"]
    text = render(found)
    assert "400,711,848,960" in text
    assert "17,184,691,200" in text
    assert "verdict            fits" in text


@pytest.mark.parametrize("name", shipped.run_names())
def test_every_shipped_run_fits_its_hardware(name):
    config = read_run(name)
    here = ["mesh.data=1"] if config.run.hardware is None else []  # for one device; eight are simulated here
    assert all(plan(stage)["fits"] for stage in read_run(name, here).in_stages)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("pretrain_maverick_h200x512", 72.97),
        ("pretrain_maverick_h200x4096", 32.60),
        ("pretrain_maverick_1m_h200x512", 43.96),
        ("pretrain_maverick_v5p_8x8x8", 85.67),
        ("pretrain_maverick_v6e_16x16", 25.79),
        ("pretrain_scout_h200x64", 94.8),
        ("pretrain_scout_h200x256", 74.44),
        ("sft_maverick_lora_h200x8", 120.0),
        ("sft_maverick_pictures_h200x64", 94.91),
        ("sft_maverick_pictures_h200x512", 35.10),
    ],
)
def test_peaks_of_cluster_configs_are_within_a_tenth_of_the_compiled_ones(name, gigabytes):
    """The compiled peaks of docs/scaling.md, in 10^9 bytes."""
    assert plan(read_config(name))["bytes_per_device"]["total"] / 1e9 == pytest.approx(gigabytes, rel=0.1)


def test_the_table_of_sizes_in_the_readme_is_current():
    document = size_table.DOCUMENT.read_text()
    assert document == size_table.written(document), "run `python -m tests.helpers.size_table`"


def test_every_model_that_is_too_large_for_one_device_has_a_run_that_fits():
    lines = [line.split(" | ") for line in size_table.table().splitlines()[2:]]
    fits = {cells[0].strip("|` "): cells[4] for cells in lines if cells[1].endswith("B")}
    without = [name for name, mesh in fits.items() if not mesh]
    assert len(fits) >= 10 and without == ["scout_17b_16e_vision"]  # its text model has one


def test_a_run_that_does_not_fit():
    found = plan(read_config("pretrain_maverick_h200x512", ["mesh.expert=8"]))  # 32 devices
    assert not found["fits"]
    assert "DOES NOT FIT" in render(found)


def test_a_teacher_that_does_not_fit():
    """A teacher that does not exist yet is planned by its config."""
    student = ["model.vocab_size=202048", "run.hardware=h200"]
    teacher = "objective={kind: distill, teacher: nowhere, teacher_config: pretrain_maverick_h200x512}"
    alone, found = (plan(read_config("pretrain_tiny", words)) for words in (student, [*student, teacher]))
    maverick = ModelConfig.from_name("maverick_17b_128e")
    assert alone["fits"] and not found["fits"]
    assert found["bytes_per_device"]["references"] == 4 * maverick.num_parameters()
    assert found["flops_per_token"]["references"] > 2 * (maverick.num_active_parameters() - 202048 * 5120)
    assert "references" in render(found) and "DOES NOT FIT" in render(found)


def test_settings_without_effect_are_warnings():
    found = plan(read_config("pretrain_tiny", ["run.steps=60", "run.eval_every=0"]))
    (line,) = found["warnings"]
    assert line.startswith("optimizer.warmup_steps: 100 is more than run.steps (60)")
    assert f"warning            {line}" in render(found).splitlines()
    assert plan(read_config("pretrain_tiny"))["warnings"] == []


def test_an_axis_of_minus_one_takes_this_machines_devices():
    found = plan(read_config("pretrain_tiny", ["mesh.fsdp=2"]))
    assert found["mesh"] == {"data": jax.device_count() // 2, "fsdp": 2}
    with pytest.raises(InputError, match="needs a multiple of 3 devices"):
        plan(read_config("pretrain_tiny", ["mesh.fsdp=3", "data.batch_size=6", "model.hidden_size=96"]))


def test_steps_tokens_and_checkpoints():
    overrides = [
        "run.steps=10",
        "data.batch_size=8",
        "data.sequence_length=64",
        "checkpoint.every=4",
        "checkpoint.keep=2",
    ]
    found = plan(read_config("pretrain_tiny", overrides))
    assert (found["steps"], found["tokens_per_step"], found["tokens"]) == (10, 512, 5120)
    assert found["checkpoints"] == {"bytes": found["parameters"]["total"] * 12, "written": 3, "kept": 2}
    assert found["flops_per_step"] == found["flops_per_token"]["total"] * 512


@pytest.mark.parametrize("words", [[], ["trainable.lora={rank: 2}"], ["trainable.parameters=[head]"]], ids=str)
def test_a_plan_counts_the_flops_of_the_run(words):
    """The count is that of `mfu`: frozen parts make a run shorter."""
    config = read_config("pretrain_tiny", ["run.hardware=v5e", *words])
    found, everything = plan(config), plan(read_config("pretrain_tiny", ["run.hardware=v5e"]))
    assert found["flops_per_token"]["total"] == sum(flops_of_run(config, {}).values())
    assert (found["days"] < everything["days"]) == bool(words)
