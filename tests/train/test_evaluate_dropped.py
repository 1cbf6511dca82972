"""The measured loss of leaving latents out of an export, and what `maverick export --drop` says of it."""

import json
import pathlib

import pytest

from launch.cli import main
from maverick_jax.errors import InputError
from maverick_jax.huggingface.extensions import LATENTS
from tests.helpers.folders import files_of
from tests.runs.test_latent_runs import CONFIG, SOURCE
from train.config_files import read_run
from train.evaluate import evaluate
from train.evaluate_dropped import loss_of_dropping
from train.run import train_to_end


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A run of three updates, with a rate at which the feedback moves."""
    folder = tmp_path_factory.mktemp("dropped")
    (folder / "run.yaml").write_text(CONFIG)
    words = ["run.steps=3", f"data.sources={SOURCE}", "optimizer.learning_rate=0.1", "run.eval_batches=1"]
    words += [
        f"run.dir={folder / 'run'}",
        f"data.cache_dir={folder}/c",
        "checkpoint.every=3",
        "model.initializer_range=0.2",
    ]
    train_to_end(read_run(str(folder / "run.yaml"), words))
    return folder / "run"


def test_the_loss_with_is_that_of_eval_and_the_loss_without_that_of_pauses(run):
    found = loss_of_dropping(str(run), [LATENTS])
    assert found["with"] == pytest.approx(evaluate(str(run))["eval_loss"], abs=1e-6)
    assert abs(found["without"] - found["with"]) > 1e-4 and found["labels"] > 0


def test_export_says_the_loss_of_dropping(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "out"), "--drop", "latents", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["held_out_loss"]
    assert found == pytest.approx(loss_of_dropping(str(run), [LATENTS]), abs=1e-6)
    assert main(["export", str(run), str(tmp_path / "again"), "--drop", "latents", "--no-measure"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'again'}\n"
    assert files_of(tmp_path / "out") == files_of(tmp_path / "again")


def test_a_folder_has_no_held_out_data(run, tmp_path, capsys, caplog):
    assert main(["export", str(run), str(tmp_path / "out"), "--sidecar"]) == 0
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "plain"), "--drop", "latents"]) == 0
    assert "what dropping costs was not measured: " in caplog.text + capsys.readouterr().err
    with pytest.raises(InputError, match=r"no run's config\.yaml is there"):
        loss_of_dropping(str(tmp_path / "out"), [LATENTS])


@pytest.mark.parametrize("words", [["--no-measure"], ["--adapter", "--drop", "latents"], ["--adapter", "--sidecar"]])
def test_arguments_that_do_not_go_together(words, tmp_path, capsys):
    assert main(["export", "nowhere", str(tmp_path / "out"), *words]) == 78
    assert "is for --drop" in (said := capsys.readouterr().err) or "--adapter: exports no model" in said
