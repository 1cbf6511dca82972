"""Frozen parts of the model: unchanged to the bit, free of moments, and the rest trained as if they were not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from maverick_jax.checkpoint import names
from maverick_jax.config import VisionConfig
from maverick_jax.errors import InputError
from tests import tiny
from train.config import read_config

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
    """The first row of the batch holds one image of one tile in its first document; no other token is `<|patch|>`."""
    fields = tiny.batch(CONFIG, step, rows=2)
    fields["tokens"][fields["tokens"] == VISION.image_token_index] = 1
    fields["tokens"][0, 0, 1 : 1 + VISION.tokens_per_tile] = VISION.image_token_index
    tiles = np.random.default_rng(step).uniform(-1, 1, (1, 2, 3, 16, 16)).astype(np.float32)
    return fields | {"pixel_values": tiles}  # the second tile is padding


def trained(freeze, steps: int):
    optimizer = tiny.OPTIMIZER.model_copy(update={"freeze": freeze})
    init, step = tiny.jitted(CONFIG, optimizer)
    state = init(0)
    before = {name: np.asarray(x) for name, x in names.flatten(state.model).items()}
    for i in range(steps):
        fields = batch_with_images(i)
        images = jax.device_put(fields.pop("pixel_values"), PartitionSpec())
        state, metrics = step(state, tiny.placed(fields) | {"pixel_values": images})
        assert np.isfinite(metrics["loss"]) and int(metrics["skipped"]) == 0
    return before, state


def test_a_frozen_encoder_is_unchanged_and_costs_no_moments(mesh_of):
    with mesh_of(data=1):
        before, state = trained(("vision",), 3)
    after = names.flatten(state)
    assert not [name for name in after if name.startswith("opt_state/") and "/vision/" in name]
    for name, value in before.items():
        changed = not np.array_equal(after["model/" + name], value)
        assert changed != name.startswith("vision/"), name


def test_an_encoder_that_is_not_frozen_is_trained(mesh_of):
    with mesh_of(data=1):
        before, state = trained((), 3)
    after = names.flatten(state)
    moments = [name for name in after if "/mu/vision/" in name]
    vision = [name for name in before if name.startswith("vision/")]
    assert len(moments) == len(vision) > 20
    unchanged = [name for name in vision if np.array_equal(after["model/" + name], before[name])]
    assert unchanged == []


def test_freezing_does_not_change_the_first_update_of_the_rest(mesh_of):
    with mesh_of(data=1):
        _, frozen = trained(("vision",), 1)
        _, free = trained((), 1)
    frozen, free = names.flatten(frozen.model), names.flatten(free.model)
    for name in [n for n in frozen if not n.startswith("vision/")]:
        # clipping sees the gradients of what is trained, so that steps differ by its factor: Adam's first does not
        np.testing.assert_allclose(jnp.asarray(frozen[name]), free[name], atol=1e-5, err_msg=name)


def test_training_the_encoder_without_images_is_refused():
    with pytest.raises(InputError, match=r"optimizer.freeze: no source of `data` holds images"):
        read_config("pretrain_tiny", ["model=tiny_vision", "optimizer.freeze=[]"])
    assert read_config("pretrain_tiny", ["model=tiny_vision"]).optimizer.freeze == ("vision",)
