"""Opening a session: the order of its checks, which come before anything is created, and its use by all entries."""

import ast
import dataclasses
import importlib.util

import jax
import pytest
from flax import nnx

from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import save_pretrained
from maverick_jax.sharding import MeshConfig, ShardingRules, single_device_mesh
from maverick_jax.text import load_tokenizer
from tests.helpers.small_run import CONFIG, REPOSITORY
from train import evaluate, expert_scores, make_targets, run, session
from train.config_files import read_config
from train.session import Parts, Session

ALL = Parts(rows=True, held_out=True, references=True, run_dir=True, tasks=True)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with a config for eight devices; caches of data and programs would be created there."""
    monkeypatch.setenv("MAVERICK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.yaml").write_text(CONFIG.replace("accumulation_steps: 2", "accumulation_steps: 1"))
    return tmp_path


@pytest.fixture
def nothing_compiles(monkeypatch):
    """Fails the test if anything is compiled."""
    import jax._src.compiler

    monkeypatch.setattr(jax._src.compiler, "compile_or_get_cached", lambda *_, **__: pytest.fail("compiled"))


def config(place, *words):
    return read_config(str(place / "small.yaml"), [f"run.dir={place / 'run'}", *words])


def made_by(place) -> str:
    """An objective whose teacher does not exist yet and is trained by its own run."""
    return f"objective={{kind: distill, teacher: {place / 'teacher'}, teacher_config: {place / 'small.yaml'}}}"


def put_model(run_config) -> None:
    """Saves a model with the config's shape in the directory of its run, instead of training one."""
    with jax.set_mesh(single_device_mesh()):
        model = jax.jit(lambda: Maverick(run_config.model.network, ShardingRules(), rngs=nnx.Rngs(0)))()
        save_pretrained(model, run_config.run.directory, dtype="float32")


# ---- order -----------------------------------------------------------------------------------------------------------


def put_another_run(place) -> None:
    """Saves checkpoint 1 of a run with a wider model."""
    other = config(place, "model.hidden_size=64")
    meta = Session.open(other, dataclasses.replace(ALL, held_out=False)).metadata()
    store = CheckpointStore(other.run.directory / "checkpoints")
    with jax.set_mesh(single_device_mesh()):
        store.save(1, {"x": jax.device_put(0)}, meta, wait=True)


PROBLEMS = {
    "mesh": ("mesh.data=4", "mesh: data=4 needs 4 devices; this job has 8"),
    "logging": ("logging.tensorboard=true", "the package tensorboardX is not installed"),
    "tokenizer": ("model.vocab_size=128", "bytes has 271 tokens, more than model.vocab_size"),
    "references": ("objective={kind: distill, teacher: /nowhere}", "/nowhere: no such folder"),
    "rows": ("data.sources={x: {path: nowhere.txt}}", "nowhere.txt"),
    "run directory": ("run.seed=0", "model.hidden_size: 64 there, 32 here"),
}
"""Step of the documented order -> (override that makes it fail, its error)."""


@pytest.mark.parametrize("step", PROBLEMS)
def test_the_first_problem_in_order_is_the_error(step, place, request, monkeypatch):
    """This step and all later ones fail, and no earlier one."""
    put_another_run(place)
    request.getfixturevalue("nothing_compiles")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else find(name))
    names = list(PROBLEMS)
    words = [PROBLEMS[name][0] for name in names[names.index(step) :]]
    with pytest.raises(InputError) as error:
        Session.open(config(place, *words), ALL)
    assert PROBLEMS[step][1] in str(error.value)


def test_the_order_is_the_documented_one(place, monkeypatch):
    """Compares the names of the functions that `Session.open` calls if a reference is missing."""
    calls = []

    def recorded(owner, name):
        found = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: calls.append(name) or found(*a, **k))

    for name in (
        *("initialize_from_environment", "check_against_mesh", "check_sinks", "check_vocabulary"),
        *("find_references", "check_references", "refuse_other_run", "use_compilation_cache"),
    ):
        recorded(session, name)
    feed = session.Feed.open
    rows = lambda config, split="train": calls.append(f"{split} rows") or feed(config, split)
    monkeypatch.setattr(session.Feed, "open", rows)

    def train(reference):
        calls.append("train")
        put_model(reference)

    opened = Session.open(config(place, made_by(place)), ALL, train=train)
    assert calls == [
        "initialize_from_environment",
        "check_against_mesh",
        "check_sinks",
        "check_vocabulary",
        *("check_against_mesh", "find_references", "check_references"),  # the mesh of the run that trains the teacher
        *("train rows", "eval rows"),
        "refuse_other_run",
        "train",
        *("find_references", "check_references"),
        "refuse_other_run",
        "use_compilation_cache",
    ]
    assert set(opened.references) == set(opened.fingerprints) == {"teacher"}
    assert set(opened.metadata()["references"]) == {"teacher"}


# ---- checks before anything is created -------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [name for name in PROBLEMS if name not in ("rows", "run directory")])
@pytest.mark.usefixtures("nothing_compiles")
def test_a_failed_check_leaves_no_file(step, place, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else find(name))
    with pytest.raises(InputError):
        Session.open(config(place, PROBLEMS[step][0]), ALL, train=pytest.fail)
    assert [path.name for path in place.iterdir()] == ["small.yaml"]


def test_no_reference_is_trained_for_a_run_that_is_refused(place):
    put_another_run(place)
    with pytest.raises(InputError, match=r"model\.hidden_size: 64 there, 32 here"):
        Session.open(config(place, made_by(place)), ALL, train=pytest.fail)
    few = config(place, made_by(place), f"run.dir={place / 'new'}", "data.held_out_fraction=0.00001")
    with pytest.raises(InputError, match="less than one batch"):
        Session.open(few, ALL, train=pytest.fail)
    assert not (place / "new").exists() and not (place / "teacher").exists()


@pytest.mark.usefixtures("nothing_compiles")
def test_a_session_writes_to_the_data_cache_alone(place):
    opened = Session.open(config(place), ALL)
    assert sorted(path.name for path in place.iterdir()) == ["cache", "small.yaml"]
    assert opened.feed.train.tokenizer.fingerprint == opened.tokenizer.fingerprint
    assert opened.held_out.num_batches == 2 and opened.references == {} and opened.mesh.size == 8


def test_a_missing_reference_that_nobody_trains_is_an_error(place):
    with pytest.raises(InputError, match="teacher: no such folder"):
        Session.open(config(place, made_by(place)), Parts(references=True))


# ---- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_compiles")
def test_parts_that_are_not_requested_are_not_opened(place):
    words = ["data.sources={x: {path: nowhere.txt}}", "objective={kind: distill, teacher: /nowhere}"]
    opened = Session.open(config(place, *words), Parts())
    for part in ("feed", "held_out", "references", "fingerprints"):
        with pytest.raises(AssertionError, match="opened without"):
            getattr(opened, part)
    assert [path.name for path in place.iterdir()] == ["small.yaml"]


def test_one_device_ignores_the_mesh_and_joins_no_job(place, monkeypatch):
    monkeypatch.setenv("MAVERICK_NUM_PROCESSES", "2")
    monkeypatch.delenv("MAVERICK_COORDINATOR", raising=False)
    odd = config(place, "mesh.data=3", "data.batch_size=9")
    opened = Session.open(odd, Parts(held_out=True, one_device=True))
    assert opened.mesh.size == 1 and opened.config.mesh == MeshConfig(data=1)
    with pytest.raises(InputError, match="MAVERICK_COORDINATOR"):
        Session.open(odd, Parts(held_out=True))


def test_work_for_one_process_refuses_a_job_of_several(place, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="start them apart"):
        Session.open(config(place), Parts(alone="start them apart"))


# ---- entries ---------------------------------------------------------------------------------------------------------


class Opened(Exception):
    """Ends an entry when it opens its session."""


@pytest.fixture
def opened(monkeypatch):
    """The sessions that entries open, each (parts, whether missing references are trained)."""
    calls = []

    def note(config, parts, train=None):
        calls.append((parts, train is not None))
        raise Opened

    monkeypatch.setattr(Session, "open", note)
    return calls


def test_each_entry_opens_one_session_with_the_parts_it_needs(place, opened):
    put_model(config(place, f"run.dir={place / 'model'}"))
    load_tokenizer("bytes").save(place / "model")
    model, small = str(place / "model"), str(place / "small.yaml")
    targets = f"objective={{kind: distill, teacher: {model}, targets: {{path: {place / 'kept'}, top_k: 4}}}}"
    entries = [
        lambda: run.main(small),
        lambda: run.main(small, ["run.eval_every=0"]),
        lambda: make_targets.make_targets(small, [targets]),
        lambda: expert_scores.choose_experts(small, checkpoint=model),
        lambda: evaluate.evaluate(model, small),
    ]
    for entry in entries:
        with pytest.raises(Opened):
            entry()
    assert opened == [
        (ALL, True),
        (dataclasses.replace(ALL, held_out=False), True),
        (Parts(rows=True, references=True, alone=make_targets.ALONE), True),
        (Parts(rows=True), False),
        (Parts(held_out=True, references=True, one_device=True), False),
    ]


OPENING = {
    *("initialize_from_environment", "make_mesh", "check_against_mesh", "check_vocabulary", "check_sinks"),
    *("find_references", "check_references", "load_references", "refuse_other_run", "use_compilation_cache"),
}


def test_no_other_module_of_train_opens_a_job():
    found = {}
    for path in (REPOSITORY / "train").rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        found |= {str(path.relative_to(REPOSITORY)): imported & OPENING} if imported & OPENING else {}
    # a step that is compiled ahead is of no job: its references are shapes. Nor are tasks without a run's data
    others = {"train/ahead.py": {"find_references"}, "train/evaluate_tasks.py": {"use_compilation_cache"}}
    assert found == {"train/session.py": OPENING} | others


@pytest.mark.parametrize("name", ["run", "evaluate", "make_targets", "expert_scores"])
def test_an_entry_is_at_most_100_lines(name):
    assert (REPOSITORY / "train" / f"{name}.py").read_text().count("\n") <= 100
