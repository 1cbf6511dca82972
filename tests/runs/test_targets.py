"""Stored targets of a real teacher and run, and a student that learns from them instead of the teacher."""

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data.targets.format import Targets
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import save_pretrained
from maverick_jax.sharding import make_mesh, single_device_mesh
from tests.helpers import tiny
from tests.helpers.small_run import REPOSITORY, assert_same_run, contents
from train.batches import Feed
from train.config_files import read_config
from train.identity import metadata, refuse_other_run
from train.make_targets import make_targets
from train.objectives.base import Context
from train.teachers.references import find_references, fingerprints, load_references

STEPS, BATCH, T = 3, 8, 32
MODEL = tiny.model_config(vocab_size=320, num_hidden_layers=2)
made = jax.jit(lambda seed: Maverick(MODEL, tiny.RULES, rngs=nnx.Rngs(params=jax.random.key(seed))))
CONFIG = f"""
run: {{name: student, steps: {STEPS}}}
model:
  base: tiny
  vocab_size: 320
  hidden_size: 32
  num_attention_heads: 4
  num_key_value_heads: 2
  head_dim: 8
  intermediate_size: 32
  intermediate_size_mlp: 64
  num_local_experts: 4
  num_hidden_layers: 2
  compute_dtype: float32
mesh: {{data: 4, tensor: 2}}
data:
  sources: {{tinyshakespeare: {{path: "package:tinyshakespeare"}}}}
  tokenizer: bytes
  batch_size: {BATCH}
  sequence_length: {T}
optimizer: {{accumulation_steps: 2}}
checkpoint: {{every: 1}}
logging: {{every: 1, progress: false}}
objective: {{kind: distill, weighting: {{start: 1.0}}, temperature: 2.0}}
"""


@dataclasses.dataclass(frozen=True)
class Place:
    config: str
    teacher: str
    kept: str

    def read(self, *overrides: str):
        return read_config(self.config, self.words(*overrides))

    def words(self, *overrides: str, k: int = 320, samples: int = 0, dtype: str = "float32", mode: str = "tail"):
        targets = f"{{path: {self.kept}, top_k: {k}, tail_samples: {samples}, dtype: {dtype}, mode: {mode}}}"
        return [f"objective.teacher={self.teacher}", f"objective.targets={targets}", *overrides]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher, a config, and stored targets with all of the teacher's probabilities in float32."""
    root = tmp_path_factory.mktemp("offline")
    (root / "student.yaml").write_text(CONFIG)
    found = Place(str(root / "student.yaml"), str(root / "teacher"), str(root / "whole"))
    with jax.set_mesh(single_device_mesh()):
        teacher = made(7)
    save_pretrained(jax.tree.map(lambda x: 4 * x, teacher), found.teacher, dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAVERICK_CACHE", str(root / "cache"))
        patch.setattr("data.targets.writer.PART_BYTES", 1)  # a part per batch
        summary = make_targets(found.config, found.words())
        assert summary["complete"] and summary["rows"] == STEPS * BATCH and summary["parts"] == "3 of 3"
        assert summary["teacher_mass"] == pytest.approx(1) and summary["teacher_loss"] > 1
        yield found


def loss_and_gradient(config, references=None):
    """Loss, gradient and metrics of a student on the first batch."""
    with jax.set_mesh(mesh := single_device_mesh()):
        model = made(1)
        with Feed.open(config).batches(0, 1) as batches:
            batch = jax.tree.map(lambda x: x[0], next(batches))
        objective = config.objective
        totals = objective.totals(batch)
        context = Context(jnp.int32(0), objective.init(), load_references(find_references(config), mesh))
        both = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
        (loss, sums), grads = both(model, batch, totals, context)
        metrics = objective.metrics(model, sums, totals, context)
        return jax.tree.map(np.asarray, (loss, metrics, jax.tree.leaves(grads)))


def test_stored_targets_of_the_whole_distribution_equal_the_teacher(place):
    """With targets from the real files in float32, loss, gradient and metrics are the same."""
    online = place.read(f"objective.teacher={place.teacher}", "objective.targets=null")
    loss, metrics, grads = loss_and_gradient(online)
    kept, reported, kept_grads = loss_and_gradient(place.read(*place.words()))
    assert metrics["divergence"] > 0.05
    np.testing.assert_allclose(kept, loss, rtol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(reported[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(kept_grads, grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))
    assert reported["teacher_mass"] == pytest.approx(1) and reported["student_mass"] == pytest.approx(1)


def test_shards_and_meshes_write_the_same_targets(place, tmp_path):
    """This includes samples of the tail, which depend only on seed, row and position."""
    words = place.words(k=16, samples=4, dtype="float16", mode="sampled")
    one, two = tmp_path / "one", tmp_path / "two"
    assert make_targets(place.config, words, out=str(one))["complete"]
    halves = [make_targets(place.config, words, out=str(two), shard=(i, 2)) for i in (1, 0)]
    assert [half["complete"] for half in halves] == [False, True] and halves[0]["parts"] == "1 of 3"
    assert contents(one) == contents(two)
    other = tmp_path / "other"
    make_targets(place.config, [*words, "mesh={data: 2, expert: 2, tensor: 2}"], out=str(other))
    config = place.read(*place.words("run.steps=1"))
    row = Feed.open(config).train.row(5)
    there, here = (Targets.open(folder).row(5, row) for folder in (one, other))
    np.testing.assert_array_equal(there["ids"], here["ids"])
    assert (there["sample_ids"] == here["sample_ids"]).mean() > 0.99
    np.testing.assert_allclose(there["log_tail"], here["log_tail"], rtol=1e-4)
    assert not (there["sample_ids"][:, :, None] == there["ids"][:, None, :]).any()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.targets.path=nowhere", "nowhere: no teacher targets here; make them with "),
        ("run.steps=4", "run.steps: 4 batches of 8 need 32 rows; 24 there"),
        ("objective.temperature=1", "objective.temperature: 2.0 there, 1.0 here"),
        ("objective.targets.top_k=8", "objective.targets.top_k: 320 there, 8 here"),
        ("objective.targets.dtype=float16", "objective.targets.dtype: float32 there, float16 here"),
        ("model.vocab_size=384", "model.vocab_size: 320 there, 384 here"),
        ("data.sequence_length=16", "data.sequence_length: 32 there, 16 here"),
        ("run.seed=1", "made from other data: its row 0 has other tokens than this run's"),
        ("data.shuffle=false", "made from other data: its row 0 has other tokens than this run's"),
    ],
)
def test_targets_of_another_run_are_refused(override, message, place):
    config = place.read(*place.words("objective.teacher=null", override))
    with pytest.raises(InputError, match=message):
        Feed.open(config)


def test_another_tokenizer_and_another_teacher_are_refused(place, tmp_path):
    with jax.set_mesh(single_device_mesh()):
        model = made(8)
    save_pretrained(model, tmp_path / "other", dtype="float32")
    with pytest.raises(InputError, match=r"objective.teacher: made by another model than .*other"):
        Feed.open(place.read(*place.words(f"objective.teacher={tmp_path}/other")))
    with pytest.raises(InputError, match=r"(?s)holds targets with other settings; nothing was changed:\n  teacher: "):
        make_targets(place.config, place.words(f"objective.teacher={tmp_path}/other"))
    path = tmp_path / "targets"
    shutil.copytree(place.kept, path)
    header = Targets.open(path).header.tokenizer
    found = (path / "contents.json").read_text()
    (path / "contents.json").write_text(found.replace(header, "f" * len(header)))
    with pytest.raises(InputError, match=r"data.tokenizer: made with another tokenizer than bytes"):
        Feed.open(place.read(*place.words(f"objective.targets.path={path}")))


def test_a_run_can_switch_from_targets_to_their_teacher(place, tmp_path):
    """A run may switch from stored targets to the teacher that made them, but not to another teacher."""
    identity = lambda config, teacher: metadata(config, "data", teacher)
    offline = identity(place.read(), Feed.open(place.read()).beside)
    kept = CheckpointStore(tmp_path / "checkpoints")
    kept.save(1, {"model/x": jnp.zeros(2)}, offline, wait=True)
    for seed, refused in ((7, False), (8, True)):
        with jax.set_mesh(single_device_mesh()):
            model = jax.tree.map(lambda x: 4 * x, made(seed))
        save_pretrained(model, tmp_path / str(seed), dtype="float32")
        config = read_config(place.config, [f"objective.teacher={tmp_path / str(seed)}"])
        online = identity(config, fingerprints(find_references(config)))
        with pytest.raises(InputError, match=f"teacher: {tmp_path}/8 holds other") if refused else nullcontext():
            refuse_other_run(config, online, kept)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_every_row_is_checked_when_it_is_read(workers, place, tmp_path):
    """Damage in a row that was not checked before the run ends the run with the same clear error."""
    path = shutil.copytree(place.kept, tmp_path / "copy")
    file = path / "part-00001.array_record"
    content = bytearray(file.read_bytes())
    unseen = next(i for i in range(8, 16) if i not in np.linspace(0, 23, 16).astype(int))
    at = int((unseen - 8 + 0.5) * len(content) / 8.5)
    content[at] ^= 1
    file.write_bytes(content)
    config = place.read(*place.words(f"objective.targets.path={path}", f"data.workers={workers}"))
    with jax.set_mesh(make_mesh({"data": 4, "tensor": 2})):
        feed = Feed.open(config)
        refused = pytest.raises(InputError, match=r"part-00001.array_record: the record of row \d+: ")
        with refused, feed.batches(0, STEPS) as batches:
            for _ in batches:
                pass


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective={kind: distill, targets: {path: x, mode: sampled}}", "mode sampled needs tail_samples"),
        (
            "objective={kind: distill, targets: {path: x, tail_samples: 2, mode: sampled}, beta: 0.5}",
            "supports only the forward KL",
        ),
        ("objective={kind: distill, targets: {path: x, mode: tial}}", "did you mean tail"),
        ("objective={kind: distill, targets: {top_k: 8}}", "objective.targets.path: required"),
        (
            "objective={kind: distill, targets: {path: x}, on_policy: {share: 0.5, max_tokens: 4, prompt_tokens: 4}}",
            "stored targets cannot score new samples",
        ),
    ],
)
def test_an_invalid_config_is_refused(override, message):
    with pytest.raises(InputError, match=message):
        read_config("pretrain_tiny", [override])


def test_impossible_targets_are_refused(place):
    for words, message in (
        (["objective.teacher=x"], "data targets: expected objective: {kind: distill, teacher: ..., targets: {path"),
        (place.words(k=321), "objective.targets.top_k: 321 is more than model.vocab_size"),
        (place.words(k=320, samples=2), "objective.targets.tail_samples: top_k 320 leaves no other tokens"),
    ):
        with pytest.raises(InputError, match=message):
            make_targets(place.config, words)


# ---- real processes --------------------------------------------------------------------------------------------------


def start(place: Place, out, *words: str) -> list[str]:
    overrides = place.words(k=8, dtype="float16")
    return [sys.executable, "-m", "launch.cli", "data", "targets", place.config, "--out", str(out), *overrides, *words]


@pytest.mark.slow
def test_a_killed_command_resumes(place, runs, tmp_path):
    """SIGKILL at several moments, with parts of one batch each; the last call writes the missing parts."""
    environment = runs.environment(8)
    one, killed = tmp_path / "one", tmp_path / "killed"
    words = ["data.sequence_length=512", "run.steps=60"]
    subprocess.run(start(place, one, *words), env=environment, cwd=REPOSITORY, check=True)
    kills = 0
    for parts in (1, 2, 3):
        process = subprocess.Popen(start(place, killed, *words), env=environment, cwd=REPOSITORY)
        while len(list(killed.glob("part-*.json"))) < parts and process.poll() is None:
            time.sleep(0.001)
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1
    subprocess.run(start(place, killed, *words), env=environment, cwd=REPOSITORY, check=True)
    assert Targets.open(killed).digest == Targets.open(one).digest
    same = lambda folder: {n: digest for n, digest in contents(folder).items() if n.endswith(".array_record")}
    assert same(killed) == same(one)


@pytest.mark.slow
def test_a_student_resumes_to_the_bit_and_keeps_its_targets(place, runs, tmp_path):
    words = [*place.words(), "objective.teacher=null"]
    runs.train(tmp_path / "whole", *words, config=place.config, devices=8)
    runs.train(tmp_path / "cut", *words, config=place.config, devices=8)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "3")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "2")
    runs.train(tmp_path / "cut", *words, config=place.config, devices=8)
    assert_same_run(tmp_path / "whole", tmp_path / "cut", STEPS)
    changed = place.words(k=8)
    make_targets(place.config, changed, out=str(tmp_path / "other"))
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "3")
    words = [*changed, f"objective.targets.path={tmp_path}/other"]
    said = runs.train(tmp_path / "cut", *words, config=place.config, devices=8, code=78)
    assert "objective.targets: " in said and "holds other numbers" in said


@pytest.mark.slow
def test_a_missing_teacher_is_trained_before_it_makes_targets(place, tmp_path):
    (tmp_path / "teacher.yaml").write_text(CONFIG[: CONFIG.index("objective:")] + "objective: {kind: pretrain}")
    made_by = [f"objective.teacher={tmp_path / 'made'}", f"objective.teacher_config={tmp_path / 'teacher.yaml'}"]
    summary = make_targets(place.config, [*made_by, f"objective.targets={{path: {tmp_path / 'kept'}, top_k: 4}}"])
    assert summary["complete"] and (tmp_path / "made" / "checkpoints" / "1").is_dir()
