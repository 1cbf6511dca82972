"""A plain student learns from a teacher with what Llama 4 has no place for: latents, or reasoning heads."""

import pathlib

import jax
import pytest

from maverick_jax.errors import InputError
from maverick_jax.model_source import open_source, shapes_of
from maverick_jax.pretrained import export
from maverick_jax.reasoning import ReasoningHeads
from tests.helpers.folders import store_run
from tests.helpers.small_run import lines
from tests.helpers.trajectory_rows import tuning, write_runs
from tests.parity.oracle import random_parameters
from tests.runs.test_latent_runs import CONFIG, SOURCE, train
from train.batches import Feed
from train.config import RunConfig
from train.config_files import read_run
from train.evaluate import evaluate
from train.session import Parts, Session
from train.teachers.references import find_references

CHAIN = (f"data.sources={SOURCE}", "run.eval_batches=1", "run.eval_every=1", "checkpoint.every=9", "run.steps=1")
"""Of the config of `test_latent_runs`."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("students") / "run.yaml"
    path.write_text(CONFIG)
    return path


def student(config: pathlib.Path, teacher: str, *words: str) -> RunConfig:
    """The config of a plain student of the teacher `teacher` beside `config`."""
    path = config.parent / teacher
    if not path.exists():
        model = read_run(str(config), [*CHAIN]).model.network
        heads = ReasoningHeads(scratch_heads=1)
        changes = {"passes": {"latent": model.latent.model_copy(update={"passes": 2, "gradient": None})},
                   "heads": {"latent": None, "reasoning_heads": heads}}[teacher]  # fmt: skip
        model = model.model_copy(update=changes)
        store_run(path, model, random_parameters(shapes_of(model)))
    objective = f"objective={{kind: distill, teacher: {path}}}"
    return read_run(str(config), [*CHAIN, f"data.cache_dir={config.parent}/c", "model.latent=null", objective, *words])


@pytest.mark.slow
def test_a_student_sees_what_a_teacher_with_latents_predicts(config, tmp_path):
    """The teacher's loss in the student's run is the loss of the teacher, and the student's export is plain."""
    teacher = train(config, config.parent / "trained", *CHAIN, "model.initializer_range=0.2")
    objective = f"objective={{kind: distill, teacher: {teacher}}}"
    plain = train(config, tmp_path / "student", *CHAIN, "model.latent=null", objective)
    (found,) = (line["eval_teacher_loss"] for line in lines(plain) if "eval_teacher_loss" in line)
    assert found == pytest.approx(evaluate(str(teacher))["eval_loss"], rel=1e-5)
    export(plain, tmp_path / "out")
    assert open_source(tmp_path / "out").config.latent is None


def test_rows_with_more_latents_than_the_teacher_computes_are_refused(config):
    session = Session.open(student(config, "passes"), Parts(rows=True, references=True, one_device=True))
    with (
        jax.set_mesh(session.mesh),
        pytest.raises(InputError, match=r"objective\.teacher\.latent\.passes: 2, and row .* 3 latents"),
        session.feed.batches(0, 1) as batches,
    ):
        next(batches)


def test_a_teacher_with_heads_gets_marks(config, tmp_path):
    """Which a plain student alone does not need; rows without token kinds cannot have them."""
    runs = tuning(write_runs(tmp_path / "runs.jsonl", 24))[:-1]
    found = student(config, "heads", *runs)
    find_references(found)
    assert "marks" in Feed.open(found).fields
    text = 'data.sources={text: {path: "package:tinyshakespeare"}}'
    with pytest.raises(InputError, match=r"objective\.teacher: .* has reasoning heads, but no source of data has"):
        find_references(student(config, "heads", text))
