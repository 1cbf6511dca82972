"""The distillation objective: its results on every mesh and in microbatches, and the configs that it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from maverick_jax.model_source import open_source
from maverick_jax.pretrained import save_pretrained
from maverick_jax.sharding import make_mesh, single_device_mesh
from maverick_jax.text import load_tokenizer
from tests.helpers import small_run, tiny
from tests.helpers.small_run import contents, store
from train.config_files import read_config
from train.objectives import Distill
from train.objectives.base import Context
from train.objectives.distill.weighting import Schedule
from train.teachers.references import check_references, find_references, load_references, missing_references

TEACHER = tiny.model_config(hidden_size=48, num_hidden_layers=8)
STUDENT = tiny.model_config()
OBJECTIVE = Distill(teacher="anywhere", temperature=2.0, weighting=Schedule(shape="linear", start=1, end=0.5, steps=4))


def made(config, seed: int) -> Maverick:
    return jax.jit(lambda: Maverick(config, tiny.RULES, rngs=nnx.Rngs(seed)))()


def gradients(sizes: dict[str, int], mesh_of, microbatches: int = 1):
    """Loss, metrics and gradient of the student on a mesh, as NumPy, at step 2."""
    with mesh_of(**sizes):
        student, batch = made(STUDENT, 1), tiny.placed(tiny.batch(STUDENT, microbatches=microbatches))
        context = Context(jnp.int32(2), {}, {"teacher": made(TEACHER, 2)})
        totals = OBJECTIVE.totals(batch)

        @jax.jit
        def whole(student, batch, totals, context):
            def one(i):
                microbatch = jax.tree.map(lambda x: x[i], batch)
                return jax.value_and_grad(OBJECTIVE.loss, has_aux=True)(student, microbatch, totals, context)

            found = [one(i) for i in range(microbatches)]
            (loss, sums), grads = jax.tree.map(lambda *x: sum(x[1:], x[0]), *found)
            return loss, OBJECTIVE.metrics(student, sums, totals, context), grads

        loss, metrics, grads = whole(student, batch, totals, context)
        flat = {name: np.asarray(x) for name, x in names.flatten(grads).items()}
        return float(loss), jax.tree.map(np.asarray, metrics), flat


@pytest.fixture(scope="module")
def expected(request):
    from maverick_jax.sharding import make_mesh

    mesh_of = lambda **sizes: jax.set_mesh(make_mesh(sizes, jax.devices()[:1]))
    return gradients({"data": 1}, mesh_of)


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    for name, grad in expected[2].items():
        np.testing.assert_allclose(found[2][name], grad, atol=1e-5 * max(1, np.abs(grad).max()), err_msg=name)


def test_the_loss_is_the_weighted_sum_of_its_metrics(expected):
    loss, metrics, _ = expected
    share = 0.75  # half of the way from 1 to 0.5
    np.testing.assert_allclose([metrics["soft_weight"], metrics["hard_weight"]], [share, 1 - share], rtol=1e-6)
    balance = STUDENT.balance.weight * metrics["router_balance"].mean()
    assert 0 < loss - share * metrics["divergence"] - (1 - share) * metrics["loss"] - balance < 0.1  # z-loss
    assert metrics["teacher_loss"] > metrics["teacher_entropy"] > 3  # an untrained teacher with 64 tokens


def test_microbatches_add_up(expected, mesh_of):
    assert_same(gradients({"data": 1}, mesh_of, microbatches=2), expected)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"fsdp": 2, "expert": 2, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param({"context": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "tensor": 4}, marks=pytest.mark.slow),
        pytest.param({"expert": 8}, marks=pytest.mark.slow),
    ],
)
def test_every_mesh_gives_the_same(sizes, expected, mesh_of):
    assert_same(gradients(sizes, mesh_of), expected)


def test_the_share_follows_its_schedule():
    at = lambda shape, step: float(Schedule(shape=shape, start=1, end=0.2, steps=10).at(jnp.int32(step)))
    assert [at("linear", 5), at("step", 9), at("step", 10), at("linear", 99)] == pytest.approx([0.6, 1, 0.2, 0.2])
    assert float(Schedule(start=0.7).at(jnp.int32(7))) == pytest.approx(0.7)
    assert at("cosine", 5) == pytest.approx(0.6) and at("cosine", 1) > at("linear", 1)


def test_a_student_approaches_its_teacher(mesh_of):
    objective = Distill(teacher="anywhere", weighting=Schedule(start=1.0))
    with mesh_of(data=1):
        init, _ = tiny.jitted(STUDENT, objective=objective)
        from train.step import train_step

        step = jax.jit(
            lambda state, batch, references: train_step(
                state, batch, references, objective=objective, optimizer=tiny.OPTIMIZER.build(tiny.STEPS, STUDENT)
            )
        )
        state, teacher = init(0), {"teacher": jax.tree.map(lambda x: 3 * x, made(TEACHER, 2))}
        batch, found = tiny.placed(tiny.batch(STUDENT)), []
        for _ in range(16):
            state, metrics = step(state, batch, teacher)
            found.append(float(metrics["divergence"]))
    assert found[-1] < 0.7 * found[0]


# ---- from a config ---------------------------------------------------------------------------------------------------


def run_config(teacher, *overrides):
    model = f"model={STUDENT.model_dump(mode='json')}".replace("'", '"').replace("None", "null")
    model = model.replace("True", "true").replace("False", "false")
    objective = f"objective={{kind: distill, teacher: {teacher}}}"
    return read_config("pretrain_tiny", [model, objective, "data.sequence_length=16", *overrides])


def test_a_teacher_is_loaded_onto_the_mesh(tmp_path):
    with jax.set_mesh(single_device_mesh()):
        teacher = made(TEACHER, 5)
    save_pretrained(teacher, tmp_path / "teacher", dtype="float32")
    mesh = make_mesh({"fsdp": 2, "expert": 2, "tensor": 2})
    from launch.plan import plan

    held = plan(run_config(tmp_path / "teacher", "mesh={fsdp: 2, expert: 2, tensor: 2, data: 1}"))["bytes_per_device"]
    with jax.set_mesh(mesh):
        found = load_references(find_references(run_config(tmp_path / "teacher")), mesh)["teacher"]
        sizes = [shard.data.nbytes for x in jax.tree.leaves(found) for shard in x.addressable_shards[:1]]
    assert held["references"] == sum(sizes)
    assert not found.head[...].sharding.is_fully_replicated
    for name, value in names.flatten(teacher).items():
        np.testing.assert_array_equal(names.flatten(found)[name], value, err_msg=name)


def test_another_vocabulary_is_refused(tmp_path):
    with jax.set_mesh(single_device_mesh()):
        save_pretrained(made(tiny.model_config(vocab_size=96), 5), tmp_path / "teacher")
    with pytest.raises(InputError, match=r"objective.teacher: .* has a vocabulary of 96; model.vocab_size is 64"):
        find_references(run_config(tmp_path / "teacher"))


def test_a_teacher_can_have_its_own_sharding_and_dtype(tmp_path):
    with jax.set_mesh(single_device_mesh()):
        save_pretrained(made(TEACHER, 5), tmp_path / "teacher", dtype="float32")
    mesh = make_mesh({"fsdp": 2, "expert": 2, "tensor": 2})
    own = f"objective={{kind: distill, teacher: {tmp_path / 'teacher'}, teacher_rules: {{embed: null}}, "
    config = run_config(tmp_path / "teacher", own + "teacher_dtype: bfloat16}")
    found = find_references(config)
    with jax.set_mesh(mesh):
        head = load_references(found, mesh)["teacher"].head[...]
    assert head.dtype == jnp.bfloat16 and tuple(head.sharding.spec) == (None, "tensor")


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path, small_llama4):
    with jax.set_mesh(single_device_mesh()):
        save_pretrained(made(TEACHER, 5), tmp_path / "teacher")
    found, sizes = find_references(run_config(tmp_path / "teacher")), {"tensor": 1}
    check_references(found, load_tokenizer("bytes"), sizes)  # its tokenizer is unknown
    load_tokenizer("bytes").save(tmp_path / "teacher")
    check_references(found, load_tokenizer("bytes"), sizes)
    said = r"objective.teacher: .* was trained with another tokenizer \(.*271 ids\).*data.tokenizer=null takes"
    with pytest.raises(InputError, match=said):
        check_references(found, small_llama4, sizes)


def test_a_teacher_that_the_mesh_cannot_divide_is_refused(tmp_path):
    with jax.set_mesh(single_device_mesh()):
        save_pretrained(made(TEACHER, 5), tmp_path / "teacher")
    found = find_references(run_config(tmp_path / "teacher"))
    with pytest.raises(InputError, match=r"objective.teacher: its model.num_attention_heads, 8, .* multiple of 16"):
        check_references(found, load_tokenizer("bytes"), {"tensor": 16})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "objective={kind: distil}",
            "'distil' is not one of pretrain, distill, trajectory, preference, reward, policy; did you mean distill",
        ),
        ("objective={kind: distill}", "objective: set `teacher`, or `targets`"),
        ("objective={kind: distill, teacher: x, teacher_rules: {embd: null}}", "teacher_rules: .*did you mean embed"),
        ("objective={kind: distill, teacher: x, beta: 2}", "objective.beta: .*less than or equal to 1"),
        ("objective={kind: distill, teacher: x, temprature: 2}", "did you mean objective.temperature"),
        ("objective={kind: distill, teacher: x, weighting: {shape: cos}}", "did you mean cosine"),
        (
            "objective={kind: pretrain, temperature: 2}",
            "objective.temperature: a key of kind: distill; this one is of kind: pretrain$",
        ),
        ("objective={kind: distill, teacher: x, weighting: {end: 0.1}}", "weighting: shape constant has no end"),
        ("objective={kind: distill, teacher: x, weighting: {shape: cosine}}", "weighting: shape cosine needs an end"),
    ],
)
def test_a_bad_objective_is_refused(override, message):
    with pytest.raises(InputError, match=message):
        read_config("pretrain_tiny", [override])


def test_the_fingerprint_of_a_teacher_depends_on_its_weights(tmp_path):
    """This includes a teacher in which only one expert was trained."""

    def saved(name: str, model) -> str:
        kept = CheckpointStore(tmp_path / name / "checkpoints")
        arrays = {f"model/{path}": x for path, x in names.flatten(model).items()}
        kept.save(1, arrays, {"model": model.config.model_dump(mode="json")}, wait=True)
        return open_source(tmp_path / name).fingerprint()

    with jax.set_mesh(single_device_mesh()):
        one, same, other = made(STUDENT, 5), made(STUDENT, 5), made(STUDENT, 5)
        experts = other.periods.layer_1.moe.experts_out
        values = np.array(experts[...])
        values[0, 3, 2, 1] += 1e-3
        experts[...] = jax.device_put(values, experts[...].sharding)
        assert saved("one", one) == saved("same", same) != saved("other", other)
        for name, model in (("hf", one), ("hf_same", same)):
            save_pretrained(model, tmp_path / name, dtype="float32")
        values[0, 3, 0] += 1e-3
        experts[...] = jax.device_put(values, experts[...].sharding)
        save_pretrained(other, tmp_path / "hf_other", dtype="float32")
    found = [open_source(tmp_path / name).fingerprint() for name in ("hf", "hf_same", "hf_other")]
    assert found[0] == found[1] != found[2]


# ---- a teacher that is trained first ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_missing_teacher_is_trained_first(runs):
    teacher, student = runs.root / "made_teacher", runs.root / "its_student"
    runs.train(teacher, "run.steps=6")  # as if interrupted
    distill = f"objective={{kind: distill, teacher: {teacher}, teacher_config: {runs.config}}}"
    said = runs.train(student, "run.steps=2", distill)
    assert f"{teacher} is at step 6 of {small_run.STEPS}; training it first" in said
    assert store(teacher).steps()[-1] == small_run.STEPS and store(student).steps() == [2]
    before = contents(teacher)
    assert "training it first" not in runs.train(student, "run.steps=3", distill)
    assert contents(teacher) == before


def test_a_teacher_from_elsewhere_is_not_trained(tmp_path):
    with jax.set_mesh(single_device_mesh()):
        save_pretrained(made(TEACHER, 5), tmp_path / "teacher")
    objective = f"objective={{kind: distill, teacher: {tmp_path / 'teacher'}, teacher_config: pretrain_teacher_tiny}}"
    assert missing_references(run_config(tmp_path / "teacher", objective)) == {}
    (tmp_path / "file").write_text("no folder")
    assert missing_references(run_config("x", objective.replace("/teacher,", "/file,"))) == {}
    (tmp_path / "none" / "checkpoints").mkdir(parents=True)  # a run that was killed before it wrote a file
    absent = missing_references(run_config("x", objective.replace("/teacher,", "/none,")))
    assert [str(found.run.directory) for found in absent.values()] == [str(tmp_path / "none")]
