"""A step can be compiled from its config alone."""

import re

import jax
import numpy as np
import pytest

from maverick_jax.accounting.activations import host_bytes
from maverick_jax.accounting.compiled import collectives
from maverick_jax.accounting.hlo import Program
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.accounting.stream import moves
from maverick_jax.accounting.topologies import topology
from maverick_jax.errors import InputError
from maverick_jax.target import Target
from train.ahead import lower_ahead
from train.batches import Feed, abstract_batch
from train.config_files import read_config

TINY = (
    "pretrain_tiny",
    ["mesh.data=1", "mesh.fsdp=2", "mesh.expert=4", "data.sequence_length=64", "data.batch_size=8"],
)


def test_a_step_is_lowered_without_its_data():
    config = read_config(TINY[0], [*TINY[1], "data.sources.default.path=nothing.txt"])
    text = lower_ahead(config, Target.local()).lowered.as_text()
    assert "tensor<1x8x64xi32>" in text


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(InputError, match="needs 8 devices; this job has 1"):
        lower_ahead(read_config(*TINY), Target.one_device())


@pytest.mark.parametrize("more", [[], ["optimizer.accumulation_steps=2", "data.batch_size=16"]])
def test_shapes_from_the_config_are_those_of_the_data(more, mesh_of, tmp_path):
    config = read_config(TINY[0], [*TINY[1], *more, f"data.cache_dir={tmp_path}"])
    feed = Feed.open(config)
    with mesh_of(fsdp=2, expert=4):
        like = abstract_batch(config, jax.sharding.get_mesh(), feed.fields)
        with feed.batches(0, 1) as batches:
            (batch,) = batches
    found = {name: (x.shape, x.dtype, x.sharding) for name, x in batch.items()}
    assert found == {name: (x.shape, x.dtype, x.sharding) for name, x in like.items()}


def test_shapes_of_stored_targets():
    targets = ["objective.kind=distill", "objective.targets.path=nowhere", "objective.targets.top_k=5"]
    config = read_config(TINY[0], [*TINY[1], *targets])
    with jax.set_mesh(mesh := jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))):
        found = abstract_batch(config.model_copy(update={"mesh": NoMesh()}), mesh, config.objective.fields())
    assert found["target_ids"].shape == (1, 8, 64, 5) and found["target_ids"].dtype == np.uint16
    assert found["target_log_probs"].dtype == np.float16 and found["target_log_tail"].shape == (1, 8, 64)


class NoMesh:
    def sharding_rules(self):
        return lambda *axes: [None for _ in axes]


@pytest.mark.compilers
def test_a_host_without_gpus_compiles_the_gpu_program():
    """In bfloat16: only a CPU replaces it."""
    config = read_config(TINY[0], [*TINY[1], "model.compute_dtype=bfloat16"])
    text = lower_ahead(config, topology("h200:8")).lowered.as_text()
    dots = re.findall(r"stablehlo\.dot_general.*: \(tensor<[\dx]*x(\w+)>", text)
    assert dots.count("bf16") > 0.9 * len(dots)


@pytest.mark.parametrize(
    "remat", [pytest.param(name, marks=pytest.mark.slow) for name in ("none", "dots", "attention", "full")]
)
@pytest.mark.parametrize("where", ["here", pytest.param("h200:8", marks=[pytest.mark.compilers, pytest.mark.slow])])
def test_blocks_gather_and_scatter_positions(where, remat):
    """Over the tensor axis, a compiled step sends exactly the closed form's bytes, and sums no activation by
    all-reduce."""
    mesh = ["mesh.fsdp=2", "mesh.expert=2", "mesh.tensor=2", "data.batch_size=8", "data.sequence_length=256"]
    words = ["mesh.data=1", *mesh, "model.num_hidden_layers=8", f"model.remat={remat}"]
    target = Target.local() if where == "here" else topology(where)
    dtype = "float32" if target.platform == "cpu" else "bfloat16"  # a CPU sends bfloat16 as float32
    config = read_config(TINY[0], [*words, f"model.compute_dtype={dtype}", "optimizer.accumulation_steps=2"])
    ahead, model = lower_ahead(config, target), config.model.network
    sizes = dict(ahead.mesh.shape)
    layout = Layout(config.mesh.sharding_rules(), sizes, batch_size=8, sequence_length=256, accumulation_steps=2)
    expected = moves(model, layout)
    found = collectives(Program.parse(ahead.lowered.compile().as_text()), sizes)
    over = lambda kind: [c for c in found if c.axes == ("tensor",) and c.kind == kind]
    assert sum(c.total for c in over("all-gather")) == expected.gathered
    assert sum(c.total for c in over("reduce-scatter")) == expected.scattered
    activation = layout.tokens * model.hidden_size * BYTES[dtype]
    assert all(c.bytes < activation / 8 for c in over("all-reduce"))


@pytest.mark.slow
@pytest.mark.compilers
def test_offloaded_values_lie_in_the_memory_of_the_host():
    """As many bytes as the closed form says; without offload there are none."""
    words = ["model.num_hidden_layers=8", "data.sequence_length=256", "model.compute_dtype=bfloat16"]
    found = []
    for remat in ("{offload: {all_layers: [mlp], global_layers: [input]}}", "full"):
        config = read_config(TINY[0], [*TINY[1], *words, f"model.remat={remat}"])
        ahead, model = lower_ahead(config, topology("h200:8")), config.model.network
        layout = Layout(config.mesh.sharding_rules(), dict(ahead.mesh.shape), batch_size=8, sequence_length=256)
        found.append((ahead.lowered.compile().memory_analysis().host_temp_size_in_bytes, host_bytes(model, layout)))
    (there, expected), nothing = found
    assert there == expected > 0 and nothing == (0, 0)


@pytest.fixture(scope="module")
def two_periods() -> str:
    """The lowered step of two periods of four layers, whose attention has two blocks of 128 queries."""
    words = ["model.num_hidden_layers=8", "model.remat=attention", "data.sequence_length=256"]
    return lower_ahead(read_config(TINY[0], [*TINY[1], *words]), Target.local()).lowered.as_text()


BLOCK = r"tensor<\d+x\d+x\d+x128x(?:128|256)x(?:f32|i1)>"
"""The type of scores or masks of a block of queries."""


def test_no_mask_is_carried_through_the_layers(two_periods):
    loops = [line for line in two_periods.splitlines() if "stablehlo.while" in line]
    assert len(loops) >= 2 and re.search(BLOCK, two_periods)
    assert not any(re.search(BLOCK, line) for line in loops)
