"""Tasks during training: metrics, and meshes on which answers cannot be written."""

import pytest

from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from tests.helpers.answering_engine import ScriptedEngine
from tests.helpers.small_run import CONFIG
from train.config_files import read_config
from train.evaluation.during import task_metrics
from train.evaluation.sentences import sentence
from train.evaluation.tasks import open_tasks

BYTES = load_tokenizer("bytes")


def test_metrics_by_task(tmp_path, monkeypatch):
    (tmp_path / "sums.jsonl").write_text('{"prompt": "1+1?", "answer": 2}\n{"prompt": "2+2?", "answer": 4}\n')
    answer = [*BYTES.encode("2"), BYTES.controls["<|eot|>"]]
    monkeypatch.setattr(
        "train.evaluation.during.PlainEngine", lambda model, tokenizer: ScriptedEngine(lambda p: answer)
    )
    found = task_metrics(open_tasks([str(tmp_path / "sums.jsonl")], BYTES), None, BYTES)
    assert found["eval_task_value"] == {"sums": 0.5} and found["eval_task_n"] == {"sums": 2}
    assert found["eval_task_low"]["sums"] < 0.5 < found["eval_task_high"]["sums"] and found["eval_task_cut"] == {
        "sums": 0
    }
    assert "task value (sums 0.5000)" in sentence(found, 1.0)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["mesh.pipeline=2"], r"run.eval_tasks: answers are not written with mesh.pipeline=2"),
        (["model.expert_capacity_factor=1.5"], r"run.eval_tasks: answers drop no tokens"),
        (["run.eval_tasks=[]"], r"run.eval_tasks_every: there are no run.eval_tasks; expected 0"),
    ],
)
def test_configs_that_cannot_answer_are_refused(tmp_path, words, problem):
    (tmp_path / "run.yaml").write_text(CONFIG)
    with pytest.raises(InputError, match=problem):
        read_config(str(tmp_path / "run.yaml"), ["run.eval_tasks=[toy_shop]", "run.eval_tasks_every=6", *words])
