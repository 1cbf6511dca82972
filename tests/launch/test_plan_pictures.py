"""Plans of runs with pictures count tiles, the image encoder's FLOPs and its memory."""

import pytest

from launch.plan import plan, render
from train.config_files import read_config

FROZEN, TRAINED = "sft_maverick_pictures_h200x64", "sft_maverick_pictures_h200x512"


@pytest.mark.parametrize(("name", "devices"), [(FROZEN, 64), (TRAINED, 512)])
def test_shipped_runs_with_pictures_fit(name, devices):
    found = plan(read_config(name))
    assert found["fits"] and found["devices"] == devices and found["tiles_per_row"] == 32
    assert found["bytes_per_device"]["tiles"] > 0
    assert "room for 32 tiles in a row; the image encoder takes" in render(found)


def test_a_frozen_encoder_costs_a_third_of_a_trained_one():
    config = read_config(FROZEN)
    roles = [*config.trainable.parameters, "vision"]
    trained = plan(read_config(FROZEN, [f"trainable.parameters=[{', '.join(roles)}]"]))
    frozen = plan(config)
    of = lambda found: found["flops_per_token"]["vision_encoder"]
    assert of(trained) == pytest.approx(3 * of(frozen), rel=1e-3)
    assert of(frozen) * 8192 / 32 == pytest.approx(0.985e12, rel=0.02)  # of a tile, without adapter and projector
    assert trained["bytes_per_device"]["activations"] > frozen["bytes_per_device"]["activations"] + 1e9
    assert trained["bytes_per_device"]["optimizer"] > frozen["bytes_per_device"]["optimizer"]


def test_without_a_stated_number_a_row_has_room_for_as_many_tiles_as_fit():
    found = plan(read_config(FROZEN, ["data.tiles.per_row=null"]))
    assert found["tiles_per_row"] == 8192 // 145


def test_a_run_of_text_has_no_tiles():
    found = plan(read_config("pretrain_tiny"))
    assert found["tiles_per_row"] == 0 and "tiles" not in found["bytes_per_device"]
    assert "pictures" not in render(found)
