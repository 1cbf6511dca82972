"""The policy objective: what does not change its result, the ratio of the first update, and what a config may say."""

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest
from flax import nnx

from maverick_jax.checkpoint import names
from maverick_jax.errors import InputError
from maverick_jax.model.inputs import Inputs
from maverick_jax.network import Balance
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny
from tests.helpers.episodes import batch_of, made_up
from train.objectives import Policy
from train.objectives.base import Context
from train.objectives.policy import losses
from train.objectives.policy.methods import METHODS
from train.objectives.preference.reference import MODEL
from train.step import accumulate

CONFIG = tiny.model_config(
    balance=Balance(kind="none", z_loss=0.0), num_hidden_layers=2, no_rope_layer_interval=2, attention_chunk_size=16
)
EPISODES = made_up(CONFIG, 16, 12)


def objective_of(kind: str, **more) -> Policy:
    section = {"method": {"kind": kind}, "environments": {"c": {"kind": "calculator"}},
               "rollouts": {"prompts": 4, "group": 4, "max_tokens": 12}, **more}  # fmt: skip
    return Policy.model_validate(section).in_run("start", (), False)


def result(objective: Policy, batch):
    """(loss, gradients of model and heads, metrics) of a batch [A, b, T]."""
    head = jnp.asarray(np.random.default_rng(3).normal(size=CONFIG.hidden_size).astype(np.float32))
    heads = {h.name: nnx.Param(head) for h in objective.heads(CONFIG, {})}
    references = {MODEL: tiny.on_mesh(tiny.model_of(CONFIG, 1))} if objective.kl else {}

    def run(trained, batch, references):
        context, totals = Context(jnp.zeros((), jnp.int32), {}, references), objective.totals(batch)

        def loss(trained, microbatch, totals):
            model, heads = trained
            in_step = Context(context.step, {}, references, heads)
            value, sums = objective.loss(model, microbatch, totals, in_step)
            return value, sums | {"total": value}

        sums, grads = accumulate(loss, trained, batch, totals)
        return sums["total"], grads, objective.metrics(trained[0], sums, totals, context)

    return jax.device_get(jax.jit(run)((tiny.on_mesh(tiny.model_of(CONFIG, 0)), heads), tiny.placed(batch), references))


def check_same(one, other):
    np.testing.assert_allclose(one[0], other[0], rtol=2e-5, atol=2e-6)
    found, expected = (names.flatten(dict(zip("mh", found[1], strict=True))) for found in (one, other))
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=2e-5 * max(np.abs(x).max(), 1e-3), err_msg=name)
    for name in ("loss", "policy_loss", "entropy", "kl", "clip_fraction", "sampler_kl"):
        np.testing.assert_allclose(one[2][name], other[2][name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module", params=[pytest.param("gspo", marks=pytest.mark.slow), "ppo"])
def whole(request):
    """An objective with everything, and its result for one episode a row on one device."""
    objective = objective_of(request.param, kl={"weight": 0.1}, correction={"kind": "mask_episodes"})
    with jax.set_mesh(single_device_mesh()):
        return objective, result(objective, batch_of(objective, EPISODES, 12, 1))


def test_packing_and_accumulation_change_nothing(whole):
    objective, expected = whole
    with jax.set_mesh(single_device_mesh()):
        check_same(result(objective, batch_of(objective, EPISODES, 24, 2, microbatches=2)), expected)


def test_meshes_change_nothing(whole, mesh_of):
    objective, expected = whole
    with mesh_of(**{"gspo": {"data": 4, "tensor": 2}, "ppo": {"fsdp": 2, "expert": 4}}[objective.method.kind]):
        check_same(result(objective, batch_of(objective, EPISODES, 24, 2)), expected)


FAST = ("gspo", "ppo")


@pytest.mark.parametrize("kind", [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in METHODS.members])
def test_the_first_update_is_reinforce_with_a_ratio_of_1(kind):
    """At equal weights every method has the gradient of -A log p, and the ratio is 1 to the bit."""
    objective = objective_of(kind)
    batch = batch_of(objective, EPISODES, 24, 2, old=False)
    with jax.set_mesh(single_device_mesh()):
        found = result(objective, batch)
        assert found[2]["ratio_off"] == 0 and found[2]["clip_fraction"] == 0 and found[2]["kl"] == 0
        if kind not in ("grpo", "gspo", "cispo"):
            return
        token_loss = lambda self, new, old, batch: losses.plain(new, batch["advantages"])
        plain = type("Plain", (type(objective.method),), {"token_loss": token_loss})
        expected = result(objective.model_copy(update={"method": plain()}), batch)
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(np.abs(other).max(), 1e-3))


def test_a_perturbed_sampler_is_seen_in_its_divergence():
    """`sampler_kl` is next to nothing if the trained model sampled, and not if one with 1% other weights did."""
    objective = objective_of("grpo")
    assert objective.rollouts.temperature == 1
    batch = batch_of(objective, EPISODES, 24, 2, old=False)
    with jax.set_mesh(single_device_mesh()):
        model = tiny.on_mesh(tiny.model_of(CONFIG, 0))
        other = jax.tree.map(lambda x: x * (1 + 0.01 * jnp.sign(jnp.sin(jnp.arange(x.size))).reshape(x.shape)), model)
        sampled = [jax.jit(objective.score)(m, {}, tiny.placed(batch))["old_log_probs"] for m in (model, other)]
        own, perturbed = (result(objective, batch | {"sampled_log_probs": x})[2]["sampler_kl"] for x in sampled)
    assert own < 1e-12 and perturbed > 1e6 * max(own, 1e-13)


@pytest.mark.parametrize("k", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_replayed_routes_are_those_of_the_scored_model(k):
    """After an update that moves the routers' choices, the loss still uses the experts of before."""
    objective = objective_of("grpo", replay_routes=True)
    assert "routes" in objective.fields() and objective.scores_first
    config = CONFIG.model_copy(update={"num_experts_per_tok": k})
    batch = batch_of(objective, EPISODES, 24, 2)
    zeros = np.zeros((*batch["tokens"].shape, len(config.moe_layers), k), np.int16)
    with jax.set_mesh(single_device_mesh()):
        before, after = (tiny.on_mesh(tiny.model_of(config, seed)) for seed in (0, 1))
        placed = tiny.placed(batch | {"routes": zeros})
        scored = jax.jit(objective.score)(before, {}, placed)
        context = Context(jnp.zeros((), jnp.int32), {}, {})
        load = lambda model, routes: jax.jit(
            lambda batch: objective.loss(model, batch, {"tokens": 1}, context)[1]["router"].load
        )({name: x[0] for name, x in (placed | routes).items()})
        plain = jax.jit(lambda batch: before.hidden(Inputs.of(batch))[1].load)(
            {name: x[0] for name, x in placed.items() if name != "routes"}
        )
        kept = load(after, {"routes": scored["routes"]})
    np.testing.assert_array_equal(kept, plain)
    dense = tiny.model_config(num_local_experts=0)
    assert "no routed experts" in objective.check_model(dense, 24)[0][1] and not objective.check_model(config, 24)


def test_what_the_model_did_not_write_has_no_gradient():
    objective = objective_of("grpo")
    batch = batch_of(objective, EPISODES, 24, 2)
    own = batch["loss_weights"] > 0
    other = np.where(own, batch["labels"], (batch["labels"] + 1) % CONFIG.vocab_size)
    changed = batch | {"labels": other, "advantages": np.where(own, batch["advantages"], np.float32(9))}
    with jax.set_mesh(single_device_mesh()):
        expected, found = result(objective, batch), result(objective, changed)
    np.testing.assert_array_equal(found[0], expected[0])
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rollouts": {"group": 1, "max_tokens": 12}}, "compares the episodes of a group"),
        ({"reference": {"kind": "copy"}}, "given without kl"),
        ({"kl": {"weight": 1}, "reference": {"kind": "stored", "path": "x"}}, "expected copy"),
        ({"correction": {}, "rollouts": {"temperature": 0.5, "max_tokens": 12}}, "needs rollouts.temperature: 1"),
        ({"rollouts": {"prompts": 5, "minibatches": 2, "max_tokens": 12}}, "not a multiple of minibatches"),
        ({"rollouts": {"dialect": "metta_json", "max_tokens": 12}}, "did you mean"),
        ({"environments": {}}, "at least 1 item"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_refused(change, why):
    with pytest.raises((pydantic.ValidationError, InputError), match=why):
        objective_of("grpo", **change)


def test_the_reference_follows_from_the_run():
    objective = objective_of("grpo", kl={"weight": 0.1})
    assert objective.references()[MODEL].path == "start" and objective.balance_loss is False
    unset = Policy.model_validate(objective_of("grpo", kl={"weight": 1}).model_dump() | {"reference": None})
    assert unset.in_run(None, (), True).references() == {}  # the model without its adapters
    with pytest.raises(InputError, match="no model to copy"):
        unset.in_run(None, ("attention",), False)
    assert objective_of("grpo").references() == {}
    assert [head.name for head in objective_of("ppo").heads(CONFIG, {})] == ["value"]


def test_several_processes_are_refused_and_one_is_not_asked_for_its_devices(monkeypatch):
    objective = objective_of("grpo")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert objective.check_batch(8, 24, 1) == [], "not part of a job of several"
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert "the job has 2" in objective.check_batch(8, 24, 1)[0][1]
