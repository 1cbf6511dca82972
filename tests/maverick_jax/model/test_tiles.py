"""Rows own their tiles: the same loss and gradients on every mesh, no features on the way between rows, and what a
frozen encoder costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from PIL import Image

from maverick_jax.accounting import compiled
from maverick_jax.accounting.hlo import Program
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.images import ImageConfig, preprocess
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.tiles import normalized, tiles_by_row
from maverick_jax.network import VisionConfig
from maverick_jax.parameters import ROLES, TEXT_ROLES
from maverick_jax.sharding import BATCH_AXES, make_mesh, single_device_mesh
from tests.helpers import tiny
from tests.helpers.collectives import compiled_text
from tests.helpers.picture_rows import rows_of, sample
from tests.parity.oracle import our_model, random_parameters, shapes
from train.objectives.base import Context
from train.trainable.config import TrainableConfig
from train.trainable.selection import Selection

VISION = VisionConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=16,
    patch_size=4,
    vision_output_dim=16,
    image_token_index=63,
    boi_token_index=61,
    eoi_token_index=62,
)
"""Four tokens a tile."""
CONFIG = tiny.model_config(vision=VISION, no_rope_layer_interval=2)
GRIDS = [[], [(1, 1)], [(2, 1), (1, 1)], [], [(1, 1), (1, 1)], [(1, 3)], [(1, 1)], []]
"""Of the pictures of eight rows: none, few and many; at most four tiles."""


def batch(tiles: int | None = None) -> dict[str, np.ndarray]:
    """A batch [1, 8, ...] of rows of 64 places."""
    rows = rows_of([[sample(VISION, grids, seed)] for seed, grids in enumerate(GRIDS)], 64, tiles)
    return {name: x[None] for name, x in rows.items()}


def loss(trained, model, rows, chosen=Selection(ROLES)):  # noqa: B008 (it is frozen)
    model, _ = chosen.with_overlays(trained, model, {})
    totals = tiny.PRETRAIN.totals(rows)
    rows = {name: x[0] for name, x in rows.items()}
    return tiny.PRETRAIN.loss(model, rows, totals, Context(jnp.zeros((), jnp.int32), {}, {}))[0]


def on_mesh(mesh) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of all parameters."""
    with jax.set_mesh(mesh):
        model = our_model(CONFIG, random_parameters(shapes(CONFIG)), mesh)
        trained = Selection(ROLES).select(model, {})
        found, grads = jax.jit(jax.value_and_grad(loss))(trained, model, tiny.placed(batch()))
        return float(found), {name: np.asarray(x) for name, x in grads.items()}


@functools.cache
def on_one_device():
    return on_mesh(single_device_mesh())


@pytest.mark.parametrize(
    "sizes",
    [
        {"fsdp": 2, "expert": 2, "tensor": 2},
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"expert": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "context": 2, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param({"pipeline": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_loss_and_gradients_are_the_same_on_every_mesh(sizes):
    (found, gradients), (expected, reference) = on_mesh(make_mesh(sizes)), on_one_device()
    assert found == pytest.approx(expected, rel=1e-6)
    assert {name for name in reference if name.startswith("vision/")} and gradients.keys() == reference.keys()
    for name, gradient in reference.items():
        assert np.linalg.norm(gradients[name] - gradient) <= 1e-5 * np.linalg.norm(gradient), name


def sent_between_rows(tiles: int, sizes: dict[str, int]) -> dict[str, float]:
    """Bytes of all collectives over batch axes in the gradient's program, by kind and axes."""
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        model = our_model(CONFIG, random_parameters(shapes(CONFIG)), mesh)
        trained = Selection(ROLES).select(model, {})
        text = compiled_text(jax.value_and_grad(loss), trained, model, tiny.placed(batch(tiles)))
    found: dict[str, float] = {}
    for collective in compiled.collectives(Program.parse(text), dict(mesh.shape)):
        if {*collective.axes} & {*BATCH_AXES}:
            key = f"{collective.kind} {collective.axes}"
            found[key] = found.get(key, 0.0) + collective.total
    return found


@pytest.mark.slow
def test_devices_with_other_rows_get_no_features():
    """Twice the tiles, forward and backward: what travels between devices with different rows stays the same."""
    sizes = {"fsdp": 2, "expert": 2, "tensor": 2}
    few, many = sent_between_rows(4, sizes), sent_between_rows(8, sizes)
    assert few and few == many


def test_fusing_needs_no_collective_where_rows_are_all_that_is_divided():
    with jax.set_mesh(mesh := make_mesh({"data": 8})):
        model = our_model(CONFIG, random_parameters(shapes(CONFIG)), mesh)
        rows = {name: x[0] for name, x in tiny.placed(batch()).items()}
        text = compiled_text(lambda model, rows: model.embed_inputs(Inputs.of(rows)), model, rows)
    assert compiled.collectives(Program.parse(text), dict(mesh.shape)) == []


# ---- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pixels_are_normalized_on_the_device_as_on_the_host_to_the_bit(dtype):
    """All 256 values of all three channels."""
    values = np.stack([np.roll(np.arange(256, dtype=np.uint8), shift).reshape(16, 16) for shift in (0, 7, 99)], axis=-1)
    host = preprocess(Image.fromarray(values), ImageConfig(tile_size=16, patch_size=4)).pixel_values
    with jax.set_mesh(single_device_mesh()):
        pixels = jax.device_put(values.transpose(2, 0, 1)[None], PartitionSpec())
        found = jax.jit(lambda x: normalized(x, jnp.dtype(dtype)))(pixels)
    assert found.dtype == dtype and found.shape == host.shape == (1, 3, 16, 16)
    np.testing.assert_array_equal(np.asarray(found, np.float32), host)


# ---- costs -----------------------------------------------------------------------------------------------------------


def costs(config: ModelConfig, roles: tuple[str, ...], tiles: int | None = None) -> tuple[float, int]:
    """FLOPs and temporary bytes of a compiled train step. `tiles`: room of each row; 0: no field."""
    fields = batch(tiles or None)
    if tiles == 0:
        del fields["tiles"]
    with jax.set_mesh(single_device_mesh()):
        init, step = tiny.jitted(config, trainable=TrainableConfig(parameters=roles))
        program = step.lower(jax.eval_shape(init, 0), tiny.placed(fields)).compile()
        return program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes


def deep(layers: int) -> ModelConfig:
    return tiny.model_config(
        vision=VISION.model_copy(update={"num_hidden_layers": layers}), num_hidden_layers=2, no_rope_layer_interval=2
    )


def test_without_pictures_the_step_is_the_text_models():
    text = tiny.model_config(num_hidden_layers=2, no_rope_layer_interval=2)
    assert costs(deep(2), TEXT_ROLES, 0) == costs(text, TEXT_ROLES, 0)


@pytest.mark.slow
def test_a_frozen_encoder_keeps_nothing_for_the_backward_pass():
    """More layers of it take no more memory, and only a forward pass; trained ones do."""
    grown = {}
    for roles in (TEXT_ROLES, ("adapter", "projector"), ROLES):
        (few_flops, few), (many_flops, many) = costs(deep(2), roles, 8), costs(deep(12), roles, 8)
        grown[roles] = many_flops - few_flops, many - few
    frozen, ends, trained = grown.values()
    assert frozen[1] < 0.02 * trained[1] and ends[1] < 0.02 * trained[1]
    assert abs(frozen[0] - ends[0]) < 0.02 * trained[0]


# ---- from the tiles of a batch ---------------------------------------------------------------------------------------


def test_tiles_of_a_batch_go_to_their_rows():
    rows = [sample(VISION, grids, seed).tokens for seed, grids in enumerate(GRIDS)]
    tiles = np.concatenate([sample(VISION, grids, seed).tiles for seed, grids in enumerate(GRIDS)])
    found = tiles_by_row(CONFIG, rows, tiles)
    assert found.shape[:2] == (8, 4) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, batch()["tiles"][0])
    assert tiles_by_row(CONFIG, rows[:1], tiles[:0]) is None and tiles_by_row(CONFIG, rows, None) is None


def test_a_picture_on_two_rows_is_refused():
    whole = sample(VISION, [(1, 1)]).tokens
    with pytest.raises(InputError, match=r"row 0 contains 2 ids 63 \(<\|patch\|>\); expected whole tiles, of 4 each"):
        tiles_by_row(CONFIG, [whole[:8], whole[8:]], np.zeros((1, 3, 16, 16)))


def test_logits_of_traced_code_are_the_same():
    with jax.set_mesh(single_device_mesh()):
        model = our_model(CONFIG, random_parameters(shapes(CONFIG)))
        tokens = batch()["tokens"][0]
        tiles = np.concatenate([sample(VISION, grids, seed).tiles for seed, grids in enumerate(GRIDS)])
        traced = jax.jit(lambda model, tokens, tiles: model.logits(tokens, pixel_values=tiles))
        found = traced(model, jnp.asarray(tokens), jnp.asarray(tiles))
        np.testing.assert_allclose(found, model.logits(tokens, pixel_values=tiles), atol=1e-5)
