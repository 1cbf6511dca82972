"""What plans say of pictures equals what compiled steps do."""

import functools

import jax
import numpy as np
import pytest

from maverick_jax import parameters
from maverick_jax.accounting import compiled, pictures
from maverick_jax.accounting.communication import by_kind, transfers
from maverick_jax.accounting.flops import NOTHING, Trained, flops_per_token
from maverick_jax.accounting.hlo import Program
from maverick_jax.accounting.layout import Layout
from maverick_jax.accounting.memory import memory
from maverick_jax.config import ModelConfig
from maverick_jax.parameters import ROLES, TEXT_ROLES, VISION_ROLES
from maverick_jax.sharding import ShardingRules, make_mesh, single_device_mesh
from tests.helpers import tiny
from tests.helpers.picture_rows import rows_of, sample
from tests.maverick_jax.model.test_tiles import VISION
from train.trainable.config import TrainableConfig

CONFIG = tiny.model_config(vision=VISION, num_hidden_layers=2, no_rope_layer_interval=2)
ROWS, LENGTH = 8, 64


@functools.cache
def program(roles: tuple[str, ...], tiles: int, mesh: tuple[tuple[str, int], ...] = ()) -> Program:
    """The compiled step of eight rows with room for `tiles`."""
    rows = rows_of([[sample(VISION, [(1, 1)], seed)] for seed in range(ROWS)], LENGTH, tiles)
    with jax.set_mesh(make_mesh(dict(mesh)) if mesh else single_device_mesh()):
        init, step = tiny.jitted(CONFIG, trainable=TrainableConfig(parameters=roles))
        batch = tiny.placed({name: x[None] for name, x in rows.items()})
        return Program.parse(step.lower(jax.eval_shape(init, 0), batch).compile().as_text())


MIDDLE = pytest.param((*TEXT_ROLES, "adapter", "projector"), marks=pytest.mark.slow)


@pytest.mark.parametrize("roles", [pytest.param(TEXT_ROLES, marks=pytest.mark.slow), MIDDLE, ROLES], ids=len)
def test_flops_of_a_tile_are_those_of_the_compiled_step(roles):
    """`remat: none`, so nothing but scores is computed again."""
    grown = compiled.flops(program(roles, 8)) - compiled.flops(program(roles, 2))
    each = pictures.flops_per_tile(CONFIG, [role for role in VISION_ROLES if role in roles])
    assert grown / (6 * ROWS) == pytest.approx(sum(each.values()), rel=0.03)


def test_a_frozen_encoder_counts_once_and_a_trained_one_three_times():
    config = ModelConfig.from_name("maverick_17b_128e_vision")
    once = pictures.flops_per_tile(config, ())
    assert sum(once.values()) == pytest.approx(1.016e12, rel=0.001)
    thrice = pictures.flops_per_tile(config, VISION_ROLES)
    assert thrice["vision_encoder"] == pytest.approx(3 * once["vision_encoder"], rel=0.001)
    ends = pictures.flops_per_tile(config, ("adapter", "projector"))
    assert ends["vision_encoder"] == once["vision_encoder"] and ends["vision_projector"] == thrice["vision_projector"]
    counted = sum(p.parameter.size for p in pictures.products(config))
    declared = sum(p.size for p in parameters.of_vision(config))
    assert 0.998 * declared < counted < declared


def test_a_row_with_pictures_costs_its_tiles_and_nothing_else():
    text = flops_per_token(CONFIG, LENGTH, Trained(TEXT_ROLES))
    both = flops_per_token(CONFIG, LENGTH, Trained(TEXT_ROLES), tiles=4)
    assert {part: both[part] for part in text} == text
    each = pictures.flops_per_tile(CONFIG, ())
    assert sum(both.values()) - sum(text.values()) == pytest.approx(4 * sum(each.values()) / LENGTH)
    # a gradient for the projector passes through the whole text model, which is frozen
    frozen, passed = (sum(flops_per_token(CONFIG, LENGTH, t).values()) for t in (NOTHING, Trained(TEXT_ROLES)))
    projector = flops_per_token(CONFIG, LENGTH, Trained(("projector",)), tiles=4)
    of_text = sum(projector[part] for part in text)
    assert frozen < of_text < passed


MESH = (("fsdp", 2), ("expert", 2), ("tensor", 2))


@pytest.mark.parametrize("roles", [pytest.param(TEXT_ROLES, marks=pytest.mark.slow), ROLES], ids=len)
def test_what_the_encoder_sends_is_what_the_compiled_step_sends(roles):
    """The difference to a step of text: gathered weights and their gradients, and sums of features' gradients."""
    layout = lambda tiles: Layout(ShardingRules(), dict(MESH), ROWS, LENGTH, tiles=tiles)
    trained = [p for p in parameters.of_model(CONFIG) if p.role in roles]
    of = lambda tiles: by_kind(transfers(CONFIG, layout(tiles), trained))
    closed = {kind: n - of(0)[kind] for kind, n in of(2).items()}
    text = [p for p in trained if p.role in TEXT_ROLES]
    assert of(0) == by_kind(transfers(CONFIG, layout(0), text)), "a batch of text sends nothing of the encoder"
    sent = compiled.collectives(program(roles, 2, MESH), dict(MESH))
    gathered = sum(c.total for c in sent if c.kind == "all-gather" and "vision" in c.op_name and "tensor" not in c.axes)
    assert closed["gather"] == pytest.approx(gathered, rel=0.15)
    assert (closed["reduce_scatter"] > 0) == (roles == ROLES)


def test_memory_counts_tiles_and_what_a_trained_encoder_keeps():
    config = ModelConfig.from_name("maverick_17b_128e_vision")
    layout = lambda tiles: Layout(ShardingRules(), {"fsdp": 64, "expert": 8}, 512, 8192, platform="gpu", tiles=tiles)
    declared = parameters.of_model(config)
    frozen = [p for p in declared if p.role in TEXT_ROLES]
    of = lambda tiles, trained: memory(config, layout(tiles), trained=trained)
    text, still, all_of_it = of(0, frozen), of(32, frozen), of(32, declared)
    assert "tiles" not in text and still["tiles"] == 32 * 3 * 336 * 336
    assert still["activations"] == text["activations"]
    kept = all_of_it["activations"] - still["activations"]
    assert 34 * 32 * 577 * 1408 * 2 <= kept <= 1.4 * 34 * 32 * 577 * 1408 * 2
    assert np.isclose(pictures.kept_bytes(config, layout(32), declared), kept)
