"""The train step: accumulation, skipped updates, expert balance and token counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from maverick_jax.checkpoint import names
from maverick_jax.model.inputs import Inputs
from maverick_jax.network import Balance, VisionConfig
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny
from train import step as step_module
from train.objectives import Pretrain
from train.optimizers import AdamW
from train.optimizers.multipliers import Multipliers
from train.state import add_tokens, init_state
from train.step import accumulate, apply_updates, compile_step, train_step


@pytest.fixture(autouse=True)
def one_device(mesh_of):
    with mesh_of(data=1):
        yield


def arrays(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in names.flatten(tree).items()}


def one_step(config, batch, optimizer=tiny.OPTIMIZER):
    init, step = tiny.jitted(config, optimizer)
    return step(init(0), tiny.placed(batch))


def test_accumulation_equals_the_large_batch():
    """With documents of different lengths and padding, a mean of means would differ."""
    config = tiny.model_config()
    smooth = tiny.OPTIMIZER.model_copy(
        update={"eps": 1e-5}
    )  # with a smaller eps, rounding would matter where a gradient is almost zero
    whole, whole_metrics = one_step(config, tiny.batch(config), smooth)
    parts, parts_metrics = one_step(config, tiny.batch(config, microbatches=4), smooth)
    found = arrays(parts)
    for name, expected in arrays(whole).items():
        np.testing.assert_allclose(found[name], expected, atol=2e-6, rtol=2e-5, err_msg=name)
    for name, expected in whole_metrics.items():
        np.testing.assert_allclose(parts_metrics[name], expected, rtol=1e-5, err_msg=name)


class Poisoned(Pretrain):
    """Its loss is finite, but its gradient or the gradient's norm is not, if the batch's first loss weight is 2."""

    poison: str

    def loss(self, model, batch, totals, context):
        loss, sums = super().loss(model, batch, totals, context)
        bad = batch["loss_weights"].at[0, 0].get(out_sharding=PartitionSpec()) == 2
        gains = jnp.sum(model.norm[...])
        # the root's slope at 0 is infinite; a float32 cannot hold the square of 1e30
        if self.poison == "gradient":
            return loss + jnp.sqrt(jnp.where(bad, 0.0, 1.0) * gains), sums
        return loss + jnp.where(bad, 1e30, 0.0) * gains, sums


@pytest.mark.parametrize("poison", ["loss", "gradient", "norm"])
def test_a_bad_step_changes_nothing(poison):
    config = tiny.model_config()
    objective = tiny.PRETRAIN if poison == "loss" else Poisoned(poison=poison)
    init, step = tiny.jitted(config, objective=objective)
    state, _ = step(init(0), tiny.placed(tiny.batch(config, 0)))
    bad = tiny.batch(config, 1)
    bad["loss_weights"][0, 0, 0] = np.nan if poison == "loss" else 2
    before = arrays(state)
    state, metrics = step(state, tiny.placed(bad))
    after = arrays(state)
    assert np.isfinite(metrics["loss"]) == (poison != "loss") and not np.isfinite(metrics["grad_norm"])
    assert int(metrics["skipped"]) == 1 and after["step"] == before["step"] + 1
    for name in before:
        if name.startswith(("model/", "opt_state/")):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    state, metrics = step(state, tiny.placed(tiny.batch(config, 2)))
    assert int(metrics["skipped"]) == 1 and np.isfinite(metrics["loss"])
    assert any((arrays(state)[name] != before[name]).any() for name in before if name.startswith("model/"))


OPTIMIZERS = {
    "rate": {"learning_rate": 1e-2},
    "schedule": {"schedule": "wsd", "decay_fraction": 0.5, "min_ratio": 0.2},
    "warmup": {"warmup_steps": 7},
    "decay": {"weight_decay": 0.3},
}


@pytest.mark.parametrize("change", OPTIMIZERS)
def test_rates_are_no_part_of_the_program(change):
    """So a sweep over them compiles once: the compiler's cache is asked for the same text."""
    assert lowered(tiny.OPTIMIZER.model_copy(update=OPTIMIZERS[change]), steps=77) == lowered(tiny.OPTIMIZER)
    assert "dot_general" in lowered(tiny.OPTIMIZER)


def test_rates_of_roles_are_no_part_of_the_program():
    """Those of the same roles; a role more is an argument more."""
    of = lambda **factors: lowered(tiny.OPTIMIZER.model_copy(update={"multipliers": Multipliers(**factors)}))
    assert of(embed=2.0, norms=0.5) == of(embed=3.0, norms=0.25)
    assert of(embed=2.0, norms=0.5) != of(embed=2.0)


def test_what_is_a_part_of_the_program_changes_it():
    assert lowered(tiny.OPTIMIZER.model_copy(update={"b2": 0.9})) != lowered(tiny.OPTIMIZER)


@functools.cache
def lowered(optimizer, steps: int = tiny.STEPS) -> str:
    config = tiny.model_config(num_hidden_layers=1)
    tx = optimizer.build(steps, config)
    init = functools.partial(init_state, config=config, rules=tiny.RULES, optimizer=tx, objective=tiny.PRETRAIN)
    step = functools.partial(train_step, objective=tiny.PRETRAIN, optimizer=tx)
    state = jax.eval_shape(init, 0)
    rates = jax.eval_shape(tx.rates, state.step, state.skipped)
    return jax.jit(step).lower(state, tiny.placed(tiny.batch(config)), {}, rates).as_text()


def test_rates_as_arguments_are_the_rates_of_the_schedule():
    """The compiled step of a run against the step whose rates are a part of it."""
    config, optimizer = tiny.model_config(num_hidden_layers=1), AdamW(learning_rate=3e-3, warmup_steps=2)
    init, inside = tiny.jitted(config, optimizer)
    batch, tx = tiny.placed(tiny.batch(config)), optimizer.build(tiny.STEPS, config)
    one, other = init(0), init(0)
    outside = compile_step(other, batch, tiny.PRETRAIN, tx, {})
    for number in range(4):
        one, expected = inside(one, batch)
        other, found = outside(other, batch)
        np.testing.assert_allclose(found["learning_rate"], tx.schedule(jnp.int32(number)), rtol=1e-6)
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)


def test_the_logged_rate_is_the_one_applied_and_counts_updates_done():
    """A refused update does not count: the next one has its rate. Without decay and momentum, Adam's first direction is
    the gradient's sign, so that the first update is the rate."""
    still = {"weight_decay": 0.0, "b1": 0.0, "eps": 1e-30}
    config, optimizer = tiny.model_config(), AdamW(learning_rate=3e-3, warmup_steps=4, schedule="cosine", **still)
    init, step = tiny.jitted(config, optimizer)
    state, logged, gains = init(0), [], []
    for refused in (False, False, True, True, False, False):
        batch = tiny.batch(config)
        batch["loss_weights"][0, 0, 0] *= np.nan if refused else 1
        gains.append(arrays(state)["model/norm"])
        state, metrics = step(state, tiny.placed(batch))
        logged.append(float(metrics["learning_rate"]))
    done, schedule = [0, 1, 2, 2, 2, 3], optimizer.schedule_of(tiny.STEPS)
    assert logged == [float(schedule(n)) for n in done] == pytest.approx([3e-3 * (n + 1) / 4 for n in done])
    # float32 numbers near 1 are 6e-8 apart, 1e-4 of this rate
    np.testing.assert_allclose(np.abs(gains[1] - gains[0]), logged[0], rtol=2e-4)


def test_loss_is_the_mean_over_labels_that_count():
    config = tiny.model_config()
    init, step = tiny.jitted(config)
    state, batch = init(0), tiny.batch(config)
    logits = state.model.logits(*(batch[k][0] for k in ("tokens", "positions", "segment_ids")))
    nll = optax.softmax_cross_entropy_with_integer_labels(np.asarray(logits), batch["labels"][0])
    expected = float((nll * batch["loss_weights"][0]).sum() / batch["loss_weights"].sum())
    _, metrics = step(state, tiny.placed(batch))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert int(metrics["tokens"][1]) == int((batch["segment_ids"] > 0).sum())


def test_loss_free_bias_moves_against_the_load():
    config = tiny.model_config(balance=Balance(kind="loss_free_bias", bias_rate=0.1, z_loss=0.0), num_hidden_layers=6)
    init, step = tiny.jitted(config)
    start = init(0)
    model = start.model
    batch = tiny.placed(tiny.batch(config))
    tokens = (batch[name][0] for name in ("tokens", "positions", "segment_ids"))
    loads = np.asarray(jax.jit(lambda model, inputs: model.hidden(inputs)[1].load)(model, Inputs(*tokens)))
    state, _ = step(start, batch)
    after = arrays(state.model)
    biases = [after["periods/layer_1/moe/router_bias"][0], after["periods/layer_3/moe/router_bias"][0]]
    biases.append(after["tail/layer_1/moe/router_bias"])
    assert len(loads) == 3
    for load, bias in zip(loads, biases, strict=True):
        np.testing.assert_allclose(bias, 0.1 * np.sign(load.mean() - load), atol=1e-7)


@functools.cache
def spread(kind: str) -> float:
    """The largest load of an expert, relative to the mean, after 60 steps."""
    config = tiny.model_config(balance=Balance(kind=kind, weight=0.1, bias_rate=0.05, z_loss=0.0))
    init, step = tiny.jitted(config, AdamW(learning_rate=3e-3, schedule="constant"))
    state = init(3)
    for i in range(60):
        state, metrics = step(state, tiny.placed(tiny.batch(config, i, rows=4)))
    return float(np.mean(metrics["router_load_max"]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auxiliary_loss", "loss_free_bias"])
def test_balancing_spreads_the_load(kind):
    """If a router sends all tokens to few experts, both kinds of balancing spread the load; without balancing it stays
    uneven."""
    assert spread(kind) < 0.8 * spread("none")


def test_auxiliary_loss_is_one_when_balanced():
    from maverick_jax.model.moe import router_stats

    logits = jnp.tile(10.0 * jnp.eye(8)[None], (2, 4, 1))  # each expert gets the same number of tokens
    stats = router_stats(logits, [jnp.argmax(logits, -1).astype(jnp.int32)], None)
    np.testing.assert_allclose(stats.balance_loss / 64, 1.0, rtol=1e-5)
    np.testing.assert_array_equal(stats.load, np.full(8, 8.0))


@pytest.mark.slow
def test_dropped_tokens_of_an_update_do_not_depend_on_accumulation():
    """Other metrics agree up to rounding. A factor of 1 drops tokens in each layer."""
    config = tiny.model_config(expert_capacity_factor=1.0)
    init, step = tiny.jitted(config)
    with jax.set_mesh(single_device_mesh()):
        whole, halves = (step(init(0), tiny.placed(tiny.batch(config, microbatches=n)))[1] for n in (1, 2))
    assert whole["router_dropped"].shape == (2,) and np.all(whole["router_dropped"] > 0)
    np.testing.assert_array_equal(whole["router_dropped"], halves["router_dropped"])
    np.testing.assert_allclose(whole["loss"], halves["loss"], rtol=1e-5)


def test_tokens_are_counted_beyond_32_bits():
    tokens = jnp.array([0, 2**32 - 5], jnp.uint32)
    np.testing.assert_array_equal(add_tokens(tokens, jnp.float32(16.0)), [1, 11])


# ---- parameters in bfloat16 ------------------------------------------------------------------------------------------


def test_gradients_of_bfloat16_parameters_are_summed_in_float32_over_microbatches():
    """512 equal microbatches: a bfloat16 sum of ones would stop at 256."""
    trained = {"w": jnp.zeros(3, jnp.bfloat16)}
    loss = lambda trained, microbatch, totals: (jnp.sum(trained["w"] * microbatch["x"]).astype(jnp.float32), {})
    _, grads = accumulate(loss, trained, {"x": jnp.ones((512, 3), jnp.bfloat16)}, {})
    assert grads["w"].dtype == jnp.float32
    np.testing.assert_array_equal(grads["w"], 512.0)


def test_the_norm_of_gradients_of_bfloat16_parameters_is_a_float32_sum():
    """Of 100,000 ones: a bfloat16 sum would stop at 256."""
    loss = lambda trained, microbatch, totals: (jnp.sum(trained["w"] * microbatch["x"]).astype(jnp.float32), {})
    ones = jnp.ones((1, 100_000), jnp.bfloat16)
    _, grads = accumulate(loss, {"w": jnp.zeros(100_000, jnp.bfloat16)}, {"x": ones}, {})
    norm = jax.jit(optax.tree.norm)(grads)
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, 100_000**0.5, rtol=1e-6)


@pytest.mark.parametrize("rate", [3e-5, 3e-6])
def test_small_updates_of_bfloat16_parameters_arrive_on_average(rate):
    """20 updates of one size on weights of standard deviation 0.02, most of them less than half a bfloat16 step. To the
    nearest, less than a third of the way is gone at 3e-5, and 4% at 3e-6."""
    start = jnp.asarray(0.02 * np.random.default_rng(0).normal(size=100_000), jnp.bfloat16)
    trained = {"w": start}
    for step in range(20):
        trained = jax.jit(apply_updates)(trained, {"w": jnp.full(start.shape, rate)}, jnp.int32(step))
    assert trained["w"].dtype == jnp.bfloat16
    gone = np.asarray(trained["w"], np.float64) - np.asarray(start, np.float64)
    # a rounding moves a weight of 0.02 by up to 1.2e-4, at random: 20 of them, over 100,000 weights, less than 1e-6
    np.testing.assert_allclose(gone.mean(), 20 * rate, atol=2e-6)


def test_a_step_of_bfloat16_parameters_repeats_to_the_bit():
    config = tiny.model_config(num_hidden_layers=2, param_dtype="bfloat16")
    init, step = tiny.jitted(config)
    batch = tiny.placed(tiny.batch(config, microbatches=2))
    (first, metrics), (second, _) = (step(init(0), batch) for _ in range(2))
    assert metrics["grad_norm"].dtype == jnp.float32, "the norm that clips"
    first, second = arrays(first), arrays(second)
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name], err_msg=name)
    assert {x.dtype for name, x in first.items() if name.startswith("model/")} == {jnp.dtype("bfloat16")}


def test_each_step_and_each_parameter_round_otherwise():
    trained, updates = ({name: jnp.full(1000, x) for name in "ab"} for x in (jnp.bfloat16(1), 1e-3))
    found = [apply_updates(trained, updates, jnp.int32(i)) for i in range(2)]
    assert (found[0]["a"] != found[1]["a"]).any() and (found[0]["a"] != found[0]["b"]).any()


def test_parameters_in_float32_are_not_rounded():
    trained = {"w": jnp.ones(4)}
    np.testing.assert_array_equal(
        apply_updates(trained, {"w": jnp.full(4, 1e-6)}, jnp.int32(0))["w"], np.float32(1 + 1e-6)
    )


def test_each_number_of_tiles_is_one_program(monkeypatch):
    """Compiled when it first comes; the first one before the first step."""
    vision = VisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4,
        vision_output_dim=8, image_token_index=63, boi_token_index=61, eoi_token_index=62,
    )  # fmt: skip
    config, made = tiny.model_config(num_hidden_layers=1, vision=vision), []
    real = step_module.lower_step
    monkeypatch.setattr(step_module, "lower_step", lambda *given: made.append(given[1]) or real(*given))

    def batch(tiles: int) -> dict:
        fields = tiny.batch(config, rows=2)
        fields["tokens"] %= 60
        return tiny.placed(fields | ({"tiles": np.zeros((1, 2, tiles, 3, 16, 16), np.uint8)} if tiles else {}))

    init, _ = tiny.jitted(config)
    state, tx = init(0), tiny.OPTIMIZER.build(tiny.STEPS, config)
    step = compile_step(state, batch(0), tiny.PRETRAIN, tx, {})
    assert len(made) == 1
    losses = []
    for tiles in (0, 2, 0, 1, 2, 0):
        state, metrics = step(state, batch(tiles))
        losses.append(float(metrics["loss"]))
    assert [0 if "tiles" not in b else b["tiles"].shape[2] for b in made] == [0, 2, 1]
    assert losses[-1] < losses[0]
