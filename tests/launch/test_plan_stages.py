"""The plan of a run in stages: each stage's own, and what they come to."""

import json

import pytest

from launch.cli import main
from launch.plan import plan
from launch.plan_stages import plan_run, render
from train.config_files import read_run


@pytest.fixture(scope="module")
def config():
    return read_run("stages_tiny", ["run.hardware=h200", "mesh.data=1"])


@pytest.fixture(scope="module")
def planned(config):
    return plan_run(config)


def test_the_sum_is_that_of_the_stages(config, planned):
    stages = planned["stages"]
    assert [(one["stage"], one["steps"]) for one in stages] == [("window", 300), ("chunked", 60), ("long", 30)]
    assert planned["steps"] == 390 and planned["tokens"] == 300 * 2048 + 60 * 2048 + 30 * 4096
    assert planned["days"] == pytest.approx(sum(one["days"] for one in stages))
    assert planned["energy"]["energy_kwh"] == pytest.approx(sum(one["energy"]["energy_kwh"] for one in stages))
    assert planned["flops"] == pytest.approx(sum(one["flops_per_step"] * one["steps"] for one in stages))
    assert [one["checkpoints"]["written"] for one in stages] == [6, 2, 1]  # 50, ..., 300; 350, 360; 390
    for one, stage in zip(stages, config.in_stages, strict=True):
        assert one == {"stage": stage.place.name, **plan(stage)}


def test_memory_is_that_of_the_worst_stage(planned):
    most = max(one["bytes_per_device"]["total"] for one in planned["stages"])
    assert planned["peak"]["bytes"] == most and planned["peak"]["stage"] == "long" and planned["fits"]


def test_the_text_has_every_stage_and_the_sum(planned):
    text = render(planned)
    assert [line for line in text.splitlines() if line.startswith(("stage ", "all"))] == [
        *("stage window", "stage chunked", "stage long", "all stages")
    ]
    assert "tokens             860,160 in 390 steps" in text and text.endswith("verdict            fits")


def test_a_run_without_stages_has_the_plan_of_its_config():
    config = read_run("pretrain_tiny", ["run.hardware=h200", "mesh.data=1"])
    found = plan_run(config)
    assert found.pop("peak")["bytes"] == found["bytes_per_device"]["total"]
    assert found == plan(config) and render(found | {"peak": None}).endswith("verdict            fits")


def test_one_stage_that_does_not_fit_is_named(tmp_path, capsys):
    (tmp_path / "large.yaml").write_text(
        "{base: pretrain_scout_h200x64, stages: [{name: small, steps: 3}, "
        "{name: large, steps: 2, data: {batch_size: 65536}}]}"
    )
    assert main(["plan", str(tmp_path / "large.yaml")]) == 1
    out, err = capsys.readouterr()
    assert "DOES NOT FIT: stage large" in out and "does not fit: " in err
    assert main(["plan", str(tmp_path / "large.yaml"), "stage=small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3
