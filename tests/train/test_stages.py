"""Stages are read: each is the run's config with its changes, and an error has its file and line."""

import json

import jsonschema
import pytest

from launch.cli import main
from maverick_jax.errors import InputError
from maverick_jax.settings import strict_yaml
from train.config_files import public, read_config, read_run, schema

TEXT = """\
base: pretrain_tiny
run: {name: staged}
optimizer: {learning_rate: 2.0e-3, schedule: cosine}
stages:
  - name: short
    steps: 10
  - name: longer
    tokens: 20000
    model: {rope_theta: 50000.0}
    data: {sequence_length: 1024, batch_size: 4}
  - name: tuned
    steps: 5
    data:
      sources:
        tinyshakespeare: null
        shop: {kind: trajectories, path: "package:toy_shop"}
    objective: sft
    optimizer: {kind: muon, schedule: constant, warmup_steps: 0}
"""


@pytest.fixture
def staged(tmp_path):
    path = tmp_path / "staged.yaml"
    path.write_text(TEXT)
    return str(path)


def errors(path: str, *words: str) -> list[str]:
    with pytest.raises(InputError) as error:
        read_run(path, words)
    return [line.removeprefix(path.rpartition("/")[0] + "/") for line in str(error.value).splitlines()]


def test_a_stage_is_the_config_of_the_run_with_its_changes(staged):
    short, longer, tuned = read_run(staged).in_stages
    assert [stage.place.name for stage in (short, longer, tuned)] == ["short", "longer", "tuned"]
    plain = read_config("pretrain_tiny", ["optimizer.learning_rate=2e-3", "run.name=staged"])
    assert short.data == plain.data and short.model == plain.model and short.optimizer == plain.optimizer
    assert (longer.model.rope_theta, longer.data.sequence_length, longer.data.batch_size) == (50000.0, 1024, 4)
    assert longer.data.sources == short.data.sources
    assert list(tuned.data.sources) == ["shop"] and tuned.objective.kind == "trajectory"
    assert tuned.optimizer.kind == "muon" and tuned.optimizer.learning_rate == 3e-4  # another kind replaces the section


def test_a_stage_knows_where_it_lies(staged):
    run = read_run(staged)
    places = [stage.place for stage in run.in_stages]
    assert [(p.first, p.steps, p.scheduled) for p in places] == [(0, 10, (0, 20)), (10, 5, (0, 20)), (15, 5, (15, 5))]
    assert [stage.run.steps for stage in run.in_stages] == [10, 15, 20]
    assert run.run.steps == 20 and all(place.run is run for place in places)
    assert [reading.rows for reading in places[0].course] == [80, 20, 40]


def test_a_config_without_stages_is_one(staged):
    config = read_run("pretrain_tiny")
    assert config.in_stages == (config,) and config.place.steps == 2000 and config.place.scheduled == (0, 2000)
    assert config.place.name == "" and config.whole is config


def test_the_resolved_config_gives_the_same_stages(staged, tmp_path):
    run = read_run(staged)
    again = tmp_path / "again.yaml"
    again.write_text(strict_yaml.dump(public(run)))
    there = read_run(str(again))
    assert public(there) == public(run)
    assert [public(stage) for stage in there.in_stages] == [public(stage) for stage in run.in_stages]


def test_a_stage_is_chosen_by_its_name(staged, capsys):
    assert read_config(staged, ["stage=longer"]).data.sequence_length == 1024
    with pytest.raises(InputError, match=r"the config has stages; name one with stage=NAME \(short, longer, tuned\)"):
        read_config(staged)
    with pytest.raises(InputError, match=r"no stage is named 'tune'; did you mean tuned\? \(known: short, longer, "):
        read_config(staged, ["stage=tune"])
    with pytest.raises(InputError, match=r"no stage is named 'x' \(known: none\)"):
        read_config("pretrain_tiny", ["stage=x"])
    assert read_config(staged, ["stages=[{name: only, steps: 3}]"]).run.steps == 3
    assert read_config(staged, ["stages=[]", "run.steps=7"]).run.steps == 7
    assert main(["config", "show", staged, "stage=longer", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["data"]["sequence_length"] == 1024 and shown["stages"] == []


def test_files_with_stages_fit_the_schema(staged):
    jsonschema.validate(strict_yaml.parse(TEXT, "staged.yaml").data, schema())
    wrong = TEXT.replace("sequence_length: 1024", "sequence_lenght: 1024")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(strict_yaml.parse(wrong, "staged.yaml").data, schema())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["stages.1.data.batch_sise=3"],
            "command line: stages.1.data.batch_sise: unknown key; did you mean stages.1.data.batch",
        ),
        (["stages.1.dta={}"], "command line: stages.1.dta: unknown key; did you mean stages.1.data?"),
        (["stages.0.steps=0"], "command line: stages.0.steps: must be greater than or equal to 1, got 0"),
        (["stages.0.tokens=9"], "staged.yaml:5: stages.0: a stage has either steps or tokens"),
        (["stages.1.name=short"], "command line: stages.1.name: short is there twice"),
        (["stages.1.run.seed=3"], "command line: stages.1.run.seed: is of the whole run; a stage may have eval_every"),
        (
            ["stages.1.data={sequence_length: x}"],
            "command line: stages.1.data.sequence_length: must be a valid integer",
        ),
        (["run.steps=7"], "command line: run.steps: 7; expected 20, the sum of the stages, or no such key"),
        (["stages.2.objective=pretrian"], "command line: stages.2.objective.kind: 'pretrian' is not one of "),
        (["stages.1.objective=sft"], "command line: stages.1.data.sources: objective.kind: trajectory needs a source"),
    ],
)
def test_errors_of_a_stage_have_their_place(staged, words, expected):
    found = errors(staged, *words)
    assert any(line.startswith(expected) for line in found), found


def test_the_line_of_a_stage_is_that_of_its_own_key(staged, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(TEXT.replace("sequence_length: 1024", "sequence_length: 1000, cell: 64"))
    assert errors(str(path)) == [
        "wrong.yaml:10: stages.1.data.cell: 64 does not divide sequence_length (1000); 50 does"
    ]


def test_steps_in_the_file_of_the_stages_must_be_their_sum(tmp_path):
    path = tmp_path / "summed.yaml"
    path.write_text(TEXT.replace("{name: staged}", "{name: staged, steps: 20}"))
    assert read_run(str(path)).run.steps == 20
    path.write_text(TEXT.replace("{name: staged}", "{name: staged, steps: 21}"))
    assert errors(str(path)) == ["summed.yaml:2: run.steps: 21; expected 20, the sum of the stages, or no such key"]
