"""On-policy updates: which updates they are, their samples, and resuming to the bit."""

import functools
import itertools
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.inference import Sampling
from maverick_jax.inference.engine import GenerationRequest, OneAtATime
from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny
from train.config_files import read_config
from train.objectives import Distill
from train.optimizers import AdamW
from train.rollouts.on_policy import OnPolicy, own_samples, row_seeds
from train.rollouts.source import Setting, batch_source
from train.state import state_with
from train.step import train_step

SHAPE = {"num_hidden_layers": 2, "no_rope_layer_interval": 2}
STUDENT, TEACHER = tiny.model_config(**SHAPE), tiny.model_config(**SHAPE, hidden_size=48)
GREEDY = OnPolicy(share=1, max_tokens=7, prompt_tokens=9, temperature=0)


def made(config, seed: int, scale: float = 3) -> Maverick:
    """A model whose probabilities are far from equal."""
    scaled = lambda: jax.tree.map(lambda x: scale * x, Maverick(config, tiny.RULES, rngs=nnx.Rngs(seed)))
    return jax.jit(scaled)()


@pytest.fixture(scope="module")
def student() -> Maverick:
    """The student on one device."""
    with jax.set_mesh(single_device_mesh()):
        return made(STUDENT, 1)


def by_hand(model, batch: dict, settings: OnPolicy, seed: int, end: int | None) -> dict[str, np.ndarray]:
    """The slow twin of `own_samples`: one row at a time, each token by a forward pass of the whole text."""
    T = batch["tokens"].shape[-1]
    rows = zip(batch["tokens"].reshape(-1, T), batch["segment_ids"].reshape(-1, T), strict=True)
    first = [row[(segment == 1)][: settings.prompt_tokens].tolist() for row, segment in rows]
    prompts = [list(itertools.takewhile(lambda token: token != end, row)) for row in first]
    sampling = Sampling(settings.temperature, top_p=settings.top_p)
    seeds = np.asarray(row_seeds(jnp.uint32(seed), jnp.arange(len(prompts), dtype=jnp.uint32))).tolist()
    twin, stops = OneAtATime(model, context=32), frozenset() if end is None else frozenset({end})
    requests = [
        GenerationRequest(prompt, settings.max_tokens, sampling, row_seed, stops)
        for prompt, row_seed in zip([p or [0] for p in prompts], seeds, strict=True)
    ]
    written = [list(twin.submit(request)[0].result().tokens) for request in requests]
    out = {name: np.zeros((len(prompts), T), x.dtype) for name, x in batch.items()}
    for g, (prompt, more) in enumerate(zip(prompts, written, strict=True)):
        more = more if prompt else []
        P, n = len(prompt), len(prompt) + len(more)
        out["tokens"][g, :n] = prompt + more
        out["positions"][g, :n], out["segment_ids"][g, :n] = range(n), 1
        if prompt:
            out["labels"][g, P - 1 : n - 1] = [~token for token in more]
            out["loss_weights"][g, P - 1 : n - 1] = 1
    return {name: x.reshape(batch[name].shape) for name, x in out.items()}


# ---- which updates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_is_correct_and_follows_no_pattern(share):
    settings = GREEDY.model_copy(update={"share": share})
    chosen = np.array([settings.draws(7, update) is not None for update in range(1, 4001)])
    assert abs(chosen.mean() - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    assert all(abs(chosen[offset::10].mean() - share) < 0.1 for offset in range(10))  # what `logging.every` sees
    again = np.array([settings.draws(8, update) is not None for update in range(1, 4001)])
    assert abs((chosen == again).mean() - share**2 - (1 - share) ** 2) < 0.05


def test_every_update_at_share_1_has_a_new_seed():
    draws = [GREEDY.draws(7, update) for update in range(1, 101)]
    assert len({int(d) for d in draws}) == 100 and draws[41] == GREEDY.draws(7, 42)


# ---- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "end"),
    [({}, None), ({"max_tokens": 1, "prompt_tokens": 20}, None), ({"temperature": 1.2, "top_p": 0.8}, 24)],
)
def test_samples_equal_those_of_the_twin(changes, end, student):
    """With packed rows, two microbatches and two updates. A document that contains only its end token, and a row of
    padding, have no labels."""
    settings = GREEDY.model_copy(update=changes)
    batch = tiny.batch(STUDENT, microbatches=2, rows=24)
    batch["segment_ids"][0, 1] = 0
    if end is not None:
        batch["tokens"][1, 2, 0], batch["tokens"][1, 3, 2] = end, end
    make = jax.jit(functools.partial(own_samples, settings=settings, end=end))
    with jax.set_mesh(single_device_mesh()):
        other, found = (make(student, batch["tokens"], batch["segment_ids"], np.uint32(seed)) for seed in (6, 5))
        expected = by_hand(student, batch, settings, 5, end)
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
        assert found[name].dtype == x.dtype
    assert (other["tokens"] == found["tokens"]).all() == (settings.temperature == 0)
    lengths = expected["loss_weights"].sum(-1)
    assert lengths[0, 1] == 0 and lengths.max() == settings.max_tokens
    if end is not None:
        assert lengths[1, 2] == 0 and expected["segment_ids"][1, 3].sum() == 2 + lengths[1, 3]
        ended = (lengths > 0) & (lengths < settings.max_tokens)
        assert ended.any() and (expected["labels"] == ~end).any(-1)[ended].all()


# ---- training on them ------------------------------------------------------------------------------------------------


def updates(steps: int):
    """Batches and metrics of the first `steps` updates on the current mesh, with a step that is compiled in advance:
    reverse KL on the student's most likely tokens."""
    optimizer = AdamW(learning_rate=1e-2, warmup_steps=2, schedule="constant").build(tiny.STEPS, STUDENT)
    parts = {"objective": Distill(teacher="anywhere", on_policy=GREEDY, beta=1.0), "optimizer": optimizer}
    state = jax.jit(functools.partial(state_with, seed=0, **parts))(made(STUDENT, 1))
    references, like, learned = {"teacher": made(TEACHER, 2)}, tiny.placed(tiny.batch(STUDENT)), []
    program = jax.jit(functools.partial(train_step, **parts)).lower(state, like, references).compile()

    of_data = (tiny.placed(tiny.batch(STUDENT, i % 2)) for i in itertools.count())
    tokenizer = types.SimpleNamespace(eos_id=None)
    setting = Setting(state, like, lambda state: state.model, 3, tokenizer, pathlib.Path(), lambda rows: {}, int)
    batches = batch_source(parts["objective"].batch_maker(), of_data, setting)
    found = []
    for update in range(1, steps + 1):
        batch = batches(update, state)
        learned.append(jax.tree.map(np.asarray, batch))
        state, metrics = program(state, batch, references)
        found.append(jax.tree.map(np.asarray, metrics))
    return learned, found


@pytest.fixture(scope="module")
def thirty():
    """Thirty updates on one device."""
    with jax.set_mesh(single_device_mesh()):
        return updates(30)


@pytest.mark.slow
def test_every_mesh_gives_the_same_update(thirty, mesh_of):
    with mesh_of(fsdp=2, expert=2, tensor=2):
        [batch], [metrics] = updates(1)
    for name, x in thirty[0][0].items():
        np.testing.assert_array_equal(batch[name], x, err_msg=name)
    for name in ("loss", "divergence", "teacher_loss", "grad_norm", "tokens"):
        np.testing.assert_allclose(metrics[name], thirty[1][0][name], rtol=1e-5, err_msg=name)
    assert metrics["on_policy"] == 1 and metrics["hard_weight"] == 0 < metrics["soft_weight"]


def test_a_student_approaches_its_teacher_on_its_own_samples(thirty):
    divergence = [float(metrics["divergence"]) for metrics in thirty[1]]
    assert np.mean(divergence[-4:]) < 0.7 * np.mean(divergence[:4]), divergence


def test_samples_do_not_change_the_state_of_a_weighting():
    objective = Distill(teacher="anywhere", on_policy=GREEDY)

    class Counting:
        def advance(self, state, metrics):
            return {"seen": state["seen"] + 1}

    objective = objective.model_copy(update={"weighting": Counting()})
    at = lambda on_policy: objective.advance({"seen": jnp.float32(4)}, {"on_policy": jnp.int32(on_policy)})["seen"]
    assert (at(0), at(1)) == (5, 4)


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config_of(runs):
    """`config_of(name, *overrides)`: command-line words for a run of six updates with an untrained teacher."""
    from maverick_jax.pretrained import save_pretrained

    config = read_config(runs.config)
    with jax.set_mesh(single_device_mesh()):
        save_pretrained(made(config.model.network, 9, 1), runs.root / "teacher", dtype="float32")
    own = "{share: 0.7, max_tokens: 6, prompt_tokens: 8}"
    objective = f"objective={{kind: distill, teacher: {runs.root / 'teacher'}, on_policy: {own}}}"
    words = [
        objective,
        "run.steps=6",
        "run.eval_every=0",
        "run.seed=0",
        "checkpoint.every=1",
        "optimizer.accumulation_steps=1",
    ]
    return lambda name, *more: (runs.config, [*words, f"run.dir={runs.root / name}", *more])


@pytest.mark.slow
def test_a_run_interrupted_between_own_samples_resumes_to_the_bit(runs, config_of, monkeypatch, caplog):
    from tests.helpers import small_run
    from train.run import main

    monkeypatch.setenv("MAVERICK_CACHE", str(runs.root / "cache"))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        main(*config_of("own"))
    assert sum("Compiling jit(train_step)" in record.getMessage() for record in caplog.records) == 1
    lines = [json.loads(line) for line in (runs.root / "own" / "metrics.jsonl").read_text().splitlines()]
    chosen = [line["on_policy"] for line in lines]
    cut = next(i for i in range(1, 6) if chosen[i - 1] and chosen[i])  # after a sampled update, before another
    assert 0 in chosen
    small_run.cut_back(runs.root / "own", runs.root / "cut", cut)
    main(*config_of("cut"))
    small_run.assert_same_run(runs.root / "own", runs.root / "cut", 6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["max_tokens=60"], r"objective.on_policy: 8 \(prompt_tokens\) \+ 60 \(max_tokens\).*sequence_length \(32\)"),
        (["share=0"], "objective.on_policy.share: .*greater than 0"),
        (["temperature=-1"], "objective.on_policy.temperature: .*greater than or equal to 0"),
        (["top_p=0"], "objective.on_policy.top_p: .*greater than 0"),
        (["promt_tokens=3"], "did you mean objective.on_policy.prompt_tokens"),
    ],
)
def test_invalid_settings_are_refused(config_of, words, said):
    path, overrides = config_of("refused")
    with pytest.raises(InputError, match=said):
        read_config(path, [*overrides, *(f"objective.on_policy.{word}" for word in words)])


def test_a_student_that_drops_tokens_is_refused(config_of):
    path, overrides = config_of("refused")
    with pytest.raises(InputError, match=r"model.expert_capacity_factor: 1.5 drops tokens, .* generates samples"):
        read_config(path, [*overrides, "model.expert_capacity_factor=1.5"])


def test_a_student_with_an_image_encoder_is_refused():
    objective = Distill(teacher="anywhere", on_policy=GREEDY)
    assert objective.check_model(STUDENT, 16) == []
    seeing = ModelConfig.from_name("maverick_17b_128e_vision")
    assert [key for key, _ in objective.check_model(seeing, 16)] == ["objective.on_policy"]
