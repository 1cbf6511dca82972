"""What would make a run fit: the nearest change, which a plan with it confirms."""

import pytest

from launch.plan import plan, render
from launch.plan_changes import nearest_that_fits
from train.config_files import read_config

ACCUMULATION = ("pretrain_tiny", ["run.hardware=v5e", "data.batch_size=4096", "mesh.data=4"])
LONG_ROWS = ["data.batch_size=4", "data.sequence_length=49152"]
REMAT = ("pretrain_maverick_slice_h200", ["model.remat=none", *LONG_ROWS])
MORE_DEVICES = ("pretrain_maverick_h200x512", ["mesh.expert=8"])
NOTHING = ("pretrain_tiny", ["run.hardware=v5e", "data.sequence_length=8000000", "data.batch_size=1"])


@pytest.mark.parametrize(
    ("run", "keys"),
    [
        (ACCUMULATION, {"optimizer.accumulation_steps"}),
        (REMAT, {"model.remat", "optimizer.accumulation_steps"}),
        (MORE_DEVICES, {"mesh.fsdp", "optimizer.accumulation_steps"}),
    ],
)
def test_a_plan_with_the_change_fits(run, keys):
    name, words = run
    found = plan(read_config(name, words))
    nearest = found["would_fit"]
    assert set(nearest["changes"]) == keys
    changes = [f"{key}={value}" for key, value in nearest["changes"].items()]
    assert " ".join(["with", *changes]) in render(found)
    changed = plan(read_config(name, [*words, *changes]))
    assert changed["fits"] and "would_fit" not in changed and "would fit" not in render(changed)
    assert (changed["devices"], changed["bytes_per_device"]["total"]) == (nearest["devices"], nearest["bytes"])


def test_it_is_said_if_nothing_fits():
    found = plan(read_config(*NOTHING))
    assert found["would_fit"] is None and "would fit          none found" in render(found)


def nearest(fits, *words: str, more_devices: bool = True):
    """The nearest change of a run on 4 replicas, by a made-up rule: `fits(config, sizes)`."""
    config = read_config("pretrain_tiny", [*words, "data.batch_size=16", "mesh.data=4"])
    total = lambda config, sizes: 0 if fits(config, sizes) else 2
    return nearest_that_fits(config, config.mesh.sizes, total, 1, more_devices=more_devices)


def test_fewer_steps_come_first_and_other_devices_last():
    assert nearest(lambda config, sizes: config.model.remat != "none")["changes"] == {"model.remat": "dots"}
    both = lambda config, sizes: config.optimizer.accumulation_steps > 1 or sizes["fsdp"] > 2
    assert nearest(both)["changes"] == {"optimizer.accumulation_steps": 2}
    sharded = nearest(lambda config, sizes: sizes["fsdp"] > 2)
    assert sharded == {"changes": {"mesh.data": 1, "mesh.fsdp": 4}, "devices": 4, "bytes": 0}
    assert nearest(lambda config, sizes: sizes["fsdp"] * sizes["data"] > 4)["devices"] == 8


def test_this_machine_gets_no_more_devices_and_a_mesh_must_divide():
    wants_eight = lambda config, sizes: sizes["data"] * sizes["fsdp"] == 8
    assert nearest(wants_eight, more_devices=False) is None
    # 16 rows in microbatches on 4 replicas: at most 4 microbatches
    assert nearest(lambda config, sizes: config.optimizer.accumulation_steps > 4) is None
