"""Frozen parts of the model: unchanged to the bit, free of moments, and the rest trained as if they were not there."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from maverick_jax.checkpoint import names
from maverick_jax.config import VisionConfig
from maverick_jax.errors import InputError
from maverick_jax.sharding import single_device_mesh
from tests import tiny
from train.config import read_config
from train.selection import ROLES, TEXT

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


@functools.cache
def trained(*roles: str) -> list[dict[str, np.ndarray]]:
    """The states before and after each of three steps."""
    optimizer = tiny.OPTIMIZER.model_copy(update={"train": roles})
    arrays = lambda state: {name: np.array(x) for name, x in names.flatten(state).items()}
    with jax.set_mesh(single_device_mesh()):
        init, step = tiny.jitted(CONFIG, optimizer)
        state = init(0)
        states = [arrays(state)]
        for i in range(3):
            fields = batch_with_images(i)
            images = jax.device_put(fields.pop("pixel_values"), PartitionSpec())
            state, metrics = step(state, tiny.placed(fields) | {"pixel_values": images})
            assert np.isfinite(metrics["loss"]) and int(metrics["skipped"]) == 0
            states.append(arrays(state))
    return states


def test_a_frozen_encoder_is_unchanged_and_costs_no_moments():
    before, *_, after = trained(*TEXT)
    assert not [name for name in after if name.startswith("opt_state/") and "/vision/" in name]
    for name in (n for n in before if n.startswith("model/")):
        changed = not np.array_equal(after[name], before[name])
        assert changed != name.startswith("model/vision/"), name


def test_an_encoder_that_is_not_frozen_is_trained():
    before, *_, after = trained(*ROLES)
    moments = [name for name in after if "/mu/vision/" in name]
    vision = [name for name in before if name.startswith("model/vision/")]
    assert len(moments) == len(vision) > 20
    assert [name for name in vision if np.array_equal(after[name], before[name])] == []


def test_freezing_does_not_change_the_first_update_of_the_rest():
    frozen, free = trained(*TEXT)[1], trained(*ROLES)[1]
    for name in [n for n in frozen if n.startswith("model/") and not n.startswith("model/vision/")]:
        # clipping sees the gradients of what is trained, so that steps differ by its factor: Adam's first does not
        np.testing.assert_allclose(frozen[name], free[name], atol=1e-5, err_msg=name)


def test_training_the_encoder_without_images_is_refused():
    with pytest.raises(InputError, match=r"optimizer.train: no source of `data` holds images"):
        read_config("pretrain_tiny", ["model=tiny_vision", "optimizer.train=[vision]"])
    assert "vision" not in read_config("pretrain_tiny", ["model=tiny_vision"]).optimizer.selection().roles
