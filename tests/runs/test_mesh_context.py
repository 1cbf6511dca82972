"""Devices that share rows give the results of one device, and exchange nothing for chunked attention."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from maverick_jax.accounting.communication import communication
from maverick_jax.accounting.compiled import Collective, collectives
from maverick_jax.accounting.hlo import Program
from maverick_jax.accounting.layout import Layout
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointConfig, CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.cross_entropy import cross_entropy
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny
from tests.helpers.collectives import compiled_text

T, CHUNK = 64, 4
KINDS = {
    "maverick": {},
    "scout": {"interleave_moe_layer_step": 1, "use_qk_norm": True},
    "dense": {"num_local_experts": 0},
    "stages": {"no_rope_layer_interval": 2},
    "limited": {"expert_capacity_factor": 1.0, "no_rope_layer_interval": 2},
}
RUNS = [
    ("maverick", {"context": 2, "expert": 2, "tensor": 2}),
    *(
        pytest.param(kind, sizes, marks=pytest.mark.slow)
        for kind, sizes in (
            ("maverick", {"context": 2}),
            ("maverick", {"context": 8}),
            ("stages", {"context": 2, "fsdp": 2, "pipeline": 2}),
            ("limited", {"context": 2, "expert": 2, "tensor": 2}),
            ("limited", {"context": 2, "fsdp": 2, "pipeline": 2}),
            ("scout", {"context": 4, "fsdp": 2}),
            ("maverick", {"context": 4, "data": 2}),
            ("maverick", {"context": 4, "expert": 2}),
            ("maverick", {"context": 4, "tensor": 2}),
            ("maverick", {"context": 2, "fsdp": 2, "expert": 2}),
            ("maverick", {"context": 2, "data": 2, "tensor": 2}),
            ("scout", {"context": 2, "fsdp": 2, "tensor": 2}),
            ("scout", {"context": 2, "data": 2, "expert": 2}),
            ("scout", {"context": 2, "data": 2, "fsdp": 2}),
        )
    ),
]


def config_of(kind: str, **changes) -> ModelConfig:
    return tiny.model_config(attention_chunk_size=CHUNK, **KINDS[kind], **changes)


def run(config: ModelConfig) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of ten steps, and all arrays of the final state: parameters and Adam's moments."""
    init, step = tiny.jitted(config)
    state, losses = init(0), []
    for i in range(tiny.STEPS):
        state, metrics = step(state, tiny.placed(tiny.batch(config, i, length=T, cell=CHUNK)))
        losses.append(float(metrics["loss"]))
    return losses, {name: np.asarray(x, np.float64) for name, x in names.flatten(state).items()}


@functools.cache
def reference(kind: str):
    with jax.set_mesh(single_device_mesh()):
        return run(config_of(kind))


@pytest.mark.parametrize(("kind", "sizes"), RUNS, ids=str)
def test_same_run_on_meshes_that_share_rows(kind, sizes, mesh_of):
    losses, arrays = reference(kind)
    with mesh_of(**sizes):
        got_losses, got = run(config_of(kind))
    np.testing.assert_allclose(got_losses, losses, atol=1e-5, rtol=0)
    for name, expected in arrays.items():
        # Adam divides by roots of tiny second moments, so single elements may differ, but not whole arrays
        assert np.linalg.norm(got[name] - expected) <= 1e-4 * max(np.linalg.norm(expected), 1e-12), name


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"context": 4}, {"fsdp": 2}], ids=str)
def test_a_checkpoint_of_shared_rows_continues_on_another_mesh(sizes, mesh_of, tmp_path):
    """Five steps on one mesh and five on another have the losses of ten on one device."""
    losses, _ = reference("maverick")
    config, found = config_of("maverick"), []
    store = CheckpointStore(tmp_path, CheckpointConfig())
    for first, mesh in ((0, {"context": 2, "expert": 2}), (5, sizes)):
        with mesh_of(**mesh):
            init, step = tiny.jitted(config)
            state = init(0)
            if first:
                like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
                _, arrays, _ = store.restore(jax.tree.map(like, names.flatten(state)))
                state = names.unflatten(state, arrays)
            for i in range(first, first + 5):
                state, metrics = step(state, tiny.placed(tiny.batch(config, i, length=T, cell=CHUNK)))
                found.append(float(metrics["loss"]))
            if not first:
                store.save(5, names.flatten(state), {}, wait=True)
    store.close()
    np.testing.assert_allclose(found, losses, atol=1e-5, rtol=0)


MESH = {"fsdp": 2, "context": 4}
UNSHARED = dataclasses.replace(
    tiny.RULES, embed=("fsdp", "expert"), expert_embed="fsdp", table=("fsdp", "expert", "tensor")
)
"""Rules with which devices that share rows do not share weights."""


def over_context(config: ModelConfig, mesh_of, rules=tiny.RULES, *, gradient: bool) -> list[Collective]:
    """The collectives along the axis `context` of a compiled loss, or of its gradient, of packed rows."""

    def loss(model, batch):
        hidden, _ = model.hidden(Inputs.of(batch))
        labels, weights = batch["labels"], batch["loss_weights"]
        return cross_entropy(hidden, model.stored_output_weight(), labels, weights, rules=rules).total

    with mesh_of(**MESH):
        model = jax.eval_shape(lambda: Maverick(config, rules, rngs=nnx.Rngs(0)))
        batch = {name: x[0] for name, x in tiny.placed(tiny.batch(config, length=T, cell=CHUNK)).items()}
        text = compiled_text(jax.grad(loss) if gradient else loss, model, batch)
        found = collectives(Program.parse(text), dict(jax.sharding.get_mesh().shape))
    return [c for c in found if "context" in c.axes]


def test_a_forward_pass_of_chunked_layers_exchanges_only_scalars(mesh_of):
    config = config_of("dense", no_rope_layer_interval=0)
    found = over_context(config, mesh_of, UNSHARED, gradient=False)
    assert found and all(c.kind == "all-reduce" and c.bytes <= 2 * 4 for c in found)


def test_chunked_attention_exchanges_nothing_and_global_attention_a_ring(mesh_of):
    """In the gradient of layers of both kinds: nothing runs along `context` in attention to chunks, collective-permutes
    in attention to all keys, and elsewhere what is sent of weights, gradients, embeddings and positions."""
    found = over_context(config_of("dense"), mesh_of, gradient=True)
    inside = lambda scope: [c for c in found if scope in c.op_name.replace(":", "/").split("/")]
    assert {c.kind for c in inside("global")} == {"collective-permute"}
    assert len(inside("global")) == sum(c.kind == "collective-permute" for c in found)
    assert not inside("chunked")
    rest = [c for c in found if c not in inside("global")]
    assert {c.kind for c in rest} == {"all-gather", "reduce-scatter", "all-to-all", "all-reduce"}
    assert all("embed" in c.op_name for c in rest if c.kind == "all-to-all")


def test_scopes_name_the_kind_of_attention(mesh_of):
    """What the last test does not find is there under another mesh axis."""
    config = config_of("dense")
    with mesh_of(data=2):
        model = jax.eval_shape(lambda: Maverick(config, rngs=nnx.Rngs(0)))
        batch = {name: x[0] for name, x in tiny.placed(tiny.batch(config, length=T, cell=CHUNK)).items()}
        text = compiled_text(lambda model, batch: model.hidden(Inputs.of(batch))[0], model, batch)
    assert "attention/chunked/" in text and "attention/global/" in text


@pytest.mark.parametrize("remat", ["attention", *(pytest.param(r, marks=pytest.mark.slow) for r in ("dots", "full"))])
def test_the_closed_form_counts_the_bytes_of_the_ring(remat, mesh_of):
    config = config_of("dense", remat=remat, num_hidden_layers=8)
    found = over_context(config, mesh_of, gradient=True)
    layout = Layout(tiny.RULES, MESH, 8, T)
    sent = sum(c.total for c in found if c.kind == "collective-permute")
    assert sent == communication(config, layout)["permute"] > 0
