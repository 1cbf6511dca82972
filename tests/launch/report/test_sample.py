"""The sample of a report: text that the run's newest checkpoint writes."""

import json

import jax
import pytest
from flax import nnx

from launch.cli import main
from launch.report.sample import write_sample
from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import import_checkpoint, save_pretrained
from maverick_jax.sharding import single_device_mesh
from maverick_jax.text import load_tokenizer
from tests.helpers import tiny


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with a random model of bytes."""
    with jax.set_mesh(single_device_mesh()):
        model = Maverick(tiny.model_config(vocab_size=272, num_hidden_layers=2), rngs=nnx.Rngs(0))
        save_pretrained(model, tmp_path / "folder", "float32", load_tokenizer("bytes"))
    import_checkpoint(tmp_path / "folder", tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("run: {steps: 3}\n")
    return tmp_path / "run"


def test_a_prompt_is_continued_and_shown(run_dir, capsys):
    assert main(["report", str(run_dir), "--prompt", "ROMEO <", "--max-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(run_dir / "report.html")}
    said = (run_dir / "sample.txt").read_text(errors="replace")
    assert said.startswith("ROMEO <") and len(said) > len("ROMEO <")
    page = (run_dir / "report.html").read_text()
    assert "What the model writes" in page and "ROMEO &lt;" in page


def test_without_a_prompt_no_model_is_loaded(run_dir, monkeypatch):
    monkeypatch.setattr("launch.report.sample.load_layers", lambda *_: pytest.fail("loaded"))
    assert main(["report", str(run_dir)]) == 0 and not (run_dir / "sample.txt").exists()


def test_a_directory_that_is_no_run_gets_no_sample(tmp_path):
    with pytest.raises(InputError, match="expected a run directory"):
        write_sample(tmp_path, "x", 4)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError):
        write_sample(tmp_path, "x", 4)
    assert not (tmp_path / "sample.txt").exists()
