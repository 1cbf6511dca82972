"""Factors of initial weights and updates by width: their closed form, the identity at the base, how far models move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax import parameters, width
from maverick_jax.checkpoint import names
from maverick_jax.latent import LatentConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.parameters import ROLES
from maverick_jax.reasoning import Loops, ReasoningHeads
from tests.helpers import tiny
from train.config_files import read_config
from train.optimizers import AdamW, Muon
from train.optimizers.schedule import RATE

PEAK = 0.01
UPDATES = 4


def wide(times: int, base: int | None = 32, **changes):
    """The tiny model, `times` as wide as 32."""
    sizes = {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 16,
             "intermediate_size_mlp": 32}  # fmt: skip
    sizes = {key: times * size for key, size in sizes.items()}
    return tiny.model_config(**sizes, num_hidden_layers=2, no_rope_layer_interval=2, base_width=base, **changes)


def test_every_role_has_its_growth():
    assert set(width._GROWTH) == set(ROLES)


def test_factors_are_those_of_the_closed_form():
    """Four times as wide: 1/2 and 1/4 for hidden matrices, 1/4 and 1/4 for the output matrix and routers."""
    heads = ReasoningHeads(schema_tokens=4)
    latent = LatentConfig(token_id=3)
    config = wide(4, reasoning_heads=heads, loops=Loops(periods=(0, 1), times=2), latent=latent)
    found = {p.name: (width.initial_factor(p, config), width.update_factor(p, config))
             for p in parameters.of_model(config)}  # fmt: skip
    hidden, output, same = (0.5, 0.25), (0.25, 0.25), (1.0, 1.0)
    kept = ("embed", "norm", "attention_norm", "mlp_norm", "gain", "loop_gain")
    expected = {name: same for name in kept} | {"head": output, "router": output}
    for name, factors in found.items():
        assert factors == expected.get(name.rsplit("/", 1)[-1], hidden), name
    assert {name.rsplit("/", 1)[-1] for name in found} >= {*expected, "experts_in", "q", "o", "down", "matrix"}


@pytest.mark.parametrize("base", [None, 128])
def test_factors_are_one_without_and_at_the_base_width(base):
    config = wide(4, base)
    table = parameters.of_model(config)
    assert {f(p, config) for p in table for f in (width.initial_factor, width.update_factor)} == {1.0}


def test_initial_weights_are_scaled():
    """The same random numbers, times the factors."""
    plain, scaled = (tiny.model_of(wide(4, base, num_local_experts=0), 0) for base in (None, 32))
    config = plain.config.model_copy(update={"base_width": 32})
    declared, expected = parameters.by_name(config), names.flatten(plain)
    for name, x in names.flatten(scaled).items():
        factor = np.float32(width.initial_factor(declared[name], config))
        np.testing.assert_allclose(x, np.asarray(expected[name]) * factor, rtol=1e-6, err_msg=name)


def test_pictures_keep_their_factors():
    """The image encoder has a width of its own."""
    config = read_config("multimodal_tiny").model
    config = config.model_copy(update={"base_width": config.hidden_size // 4})
    for p in parameters.of_vision(config):
        assert width.initial_factor(p, config) == width.update_factor(p, config) == 1.0


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_at_the_base_width_the_programs_are_those_without(kind):
    """Initial state and step, as text: so results are equal to the bit."""
    programs = []
    with jax.set_mesh(tiny.single_device_mesh()):
        for base in (None, 32):
            config = wide(1, base)
            init, step = tiny.jitted(config, kind(learning_rate=PEAK))
            state = jax.eval_shape(init, 0)
            programs.append((init.lower(0).as_text(), step.lower(state, tiny.batch(config)).as_text()))
    assert programs[0] == programs[1]


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_an_update_moves_a_matrixs_outputs_alike_at_all_widths(kind):
    """The gradient of one token is an outer product, and the update moves the same token's outputs: without the factor
    twice (Muon) and four times (Adam) as far at four times the width."""
    name, far = "periods/layer_0/attention/q", {}
    with jax.set_mesh(tiny.single_device_mesh()):
        for times, base in ((1, None), (4, None), (4, 32)):
            config = wide(times, base)
            shape = parameters.by_name(config)[name].full_shape
            x, down = (np.random.default_rng(n).choice([-1, 1], n).astype(np.float32) for n in _sides(shape))
            transform = kind(learning_rate=1.0, weight_decay=0.0, clip_norm=None).build(9, config).transform
            weights = {name: jnp.zeros(shape)}
            gradient = {name: jnp.asarray(np.outer(x, down).reshape(shape))}
            rates = {RATE: jnp.float32(1.0), "weight_decay": jnp.float32(0.0)}
            update, _ = transform.update(gradient, transform.init(weights), weights, rates=rates)
            moved = x @ np.asarray(update[name]).reshape(len(x), -1)
            far[times, base] = float(np.sqrt(np.mean(moved**2)))
    assert far[4, None] / far[1, None] == pytest.approx(4 if kind is AdamW else 2, rel=0.02)
    assert far[4, 32] / far[1, None] == pytest.approx(1, rel=0.02)


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """(Inputs, outputs) of a stacked weight with one axis of inputs."""
    return shape[-3], shape[-2] * shape[-1]


def moved(config, optimizer) -> dict[str, float]:
    """How far a few updates move the last hidden states and the logits of a batch: root mean squares."""
    with jax.set_mesh(tiny.single_device_mesh()):
        init, step = tiny.jitted(config, optimizer)
        batch = tiny.placed(tiny.batch(config))
        inputs = Inputs(*(batch[name][0] for name in ("tokens", "positions", "segment_ids")))

        @jax.jit
        def outputs(model):
            hidden, _ = model.hidden(inputs)
            return hidden, hidden @ model.head[...]

        state = init(0)
        before = [np.asarray(x) for x in outputs(state.model)]
        for _ in range(UPDATES):
            state, _ = step(state, batch)
        after = outputs(state.model)
    sizes = (float(np.sqrt(np.mean((np.asarray(b) - a) ** 2))) for a, b in zip(before, after, strict=True))
    return dict(zip(("hidden", "logits"), sizes, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_a_few_updates_move_a_wide_model_as_far_as_a_narrow_one(kind):
    """The coordinate check of Tensor Programs V, 8 times as wide; the standard form is the control."""
    optimizer = kind(learning_rate=PEAK, schedule="constant", weight_decay=0.0)
    narrow, standard, scaled = (moved(wide(*of), optimizer) for of in ((1, None), (8, None), (8, 32)))
    assert standard["logits"] > 2.5 * narrow["logits"]
    for name, size in narrow.items():
        assert 0.5 * size < scaled[name] < 1.5 * size, name
