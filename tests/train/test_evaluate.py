"""`maverick eval` of a distillation: what it says of the teacher."""

import io

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from rich.console import Console

from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import save_pretrained
from maverick_jax.sharding import single_device_mesh
from tests.helpers.folders import bytes_model
from tests.helpers.small_run import CONFIG
from train.config_files import read_config
from train.evaluate import evaluate
from train.evaluation.carried import objective_state
from train.evaluation.results import compare
from train.evaluation.tables import show


def test_the_objectives_scalars_are_read_from_a_run_or_one_of_its_checkpoints(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (3, 12):
        arrays = {"objective/lead_ema": jnp.float32(-step), "model/embed": jnp.zeros(4)}
        store.save(step, arrays, {}, wait=True)
    assert objective_state(str(tmp_path)) == {"lead_ema": -12.0}
    assert objective_state(str(tmp_path / "checkpoints" / "3")) == {"lead_ema": -3.0}


@pytest.mark.parametrize("factor", [0.0, 3000.0])
def test_evaluating_says_which_model_is_ahead(tmp_path, factor, monkeypatch):
    """A student that knows nothing, and one that is sure and wrong, beside a teacher that knows nothing."""
    monkeypatch.setenv("MAVERICK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "run.yaml").write_text(CONFIG)
    words = ["objective.kind=distill", f"objective.teacher={tmp_path / 'teacher'}", "run.eval_batches=1"]
    model = read_config(str(tmp_path / "run.yaml"), []).model.network
    with jax.set_mesh(single_device_mesh()):
        for name, scale in (("teacher", factor), ("student", 1500.0)):
            made = Maverick(model, rngs=nnx.Rngs(0))
            made.head[...] *= scale
            save_pretrained(made, tmp_path / name, "float32")
    found = evaluate(str(tmp_path / "student"), str(tmp_path / "run.yaml"), words)
    behind = found["eval_teacher_loss"] > found["eval_loss"]
    assert behind == (factor > 0) == ("remarks" in found)
    out = io.StringIO()
    show(found, Console(file=out, width=200))
    assert ("the teacher is behind the student on held-out data" in out.getvalue()) == behind


def test_tasks_alone_need_no_config_and_a_model_equals_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("MAVERICK_CACHE", str(tmp_path / "cache"))
    checkpoint = str(bytes_model(tmp_path / "model"))
    (tmp_path / "q.csv").write_text("question,choice0,choice1,answer\nHot?,yes,no,1\nCold?,yes,no,0\n")
    text = f"tasks:\n  letters: {{kind: multiple_choice, path: {tmp_path / 'q.csv'}}}\n"
    (tmp_path / "tasks.yaml").write_text(f"{text}  orders: {{kind: toy_shop_orders, count: 2, max_tokens: 3}}\n")
    found = evaluate(checkpoint, tasks=[str(tmp_path / "tasks.yaml")])
    assert found["tasks"]["letters"]["correct"] == 1 and found["tasks"]["orders"]["cut"]["value"] == 1
    compared = compare(found, found, ("a", "b"))["tasks"]["letters"]["paired"]
    assert (compared["difference"], compared["p_value"]) == (0, 1)
