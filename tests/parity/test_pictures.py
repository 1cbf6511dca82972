"""Compares the loss and the gradients of samples with pictures with the public model, and shows that mistakes in a
batch change them; a packed row gives what its samples give alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from data.rows.fields import FIELDS
from data.rows.two_budgets import best_fit_in_two
from maverick_jax.images import pixel_table
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from maverick_jax.network import Balance
from maverick_jax.parameters import ROLES, TEXT_ROLES
from maverick_jax.sharding import ShardingRules, single_device_mesh
from tests.helpers.picture_rows import Sample, rows_of, sample
from tests.parity.oracle import VISION, Case, exported, random_parameters, shapes, variant
from train.objectives import Pretrain
from train.objectives.base import Context
from train.trainable.selection import Selection

CONFIG = variant(vision=VISION.model_dump(), balance=Balance(kind="none", z_loss=0.0).model_dump())
RULES, OBJECTIVE = ShardingRules(), Pretrain()
GRIDS = [], [(1, 1)], [(2, 3), (1, 1)]
"""Of the pictures of three samples: none, one of one tile, and two, of seven tiles and of one."""
LENGTH, PACKED_LENGTH = 104, 152


@functools.cache
def case() -> Case:
    return Case(CONFIG, random_parameters(shapes(CONFIG)))


@functools.cache
def samples() -> tuple[Sample, ...]:
    return tuple(sample(VISION, grids, seed) for seed, grids in enumerate(GRIDS))


def alone() -> dict[str, np.ndarray]:
    """A row for each sample."""
    return rows_of([[s] for s in samples()], LENGTH)


def packed(*order: int) -> dict[str, np.ndarray]:
    """One row with all samples."""
    return rows_of([[samples()[i] for i in order or range(3)]], PACKED_LENGTH)


@functools.cache
def _program(roles: tuple[str, ...]):
    chosen = Selection(roles)

    def loss(trained, model, batch):
        model, _ = chosen.with_overlays(trained, model, {})
        totals = OBJECTIVE.totals({name: x[None] for name, x in batch.items()})
        return OBJECTIVE.loss(model, batch, totals, Context(jnp.zeros((), jnp.int32), {}, {}))[0]

    return chosen, jax.jit(jax.value_and_grad(loss))


def ours(batch: dict[str, np.ndarray], roles: tuple[str, ...] = ROLES) -> tuple[float, dict[str, np.ndarray]]:
    """Loss of the train step's objective, and its gradients by parameter."""
    chosen, program = _program(roles)
    with jax.set_mesh(single_device_mesh()):
        placed = {name: jax.device_put(x, RULES(*FIELDS[name].axes)) for name, x in batch.items()}
        loss, grads = program(chosen.select(case().ours, {}), case().ours, placed)
    return float(loss), {name: np.asarray(x) for name, x in grads.items()}


@functools.cache
def theirs() -> tuple[float, dict[str, np.ndarray]]:
    """The public model's loss with the same labels, and its gradients by tensor."""
    import torch

    batch, model = alone(), case().torch
    labels = np.where(batch["loss_weights"] > 0, batch["labels"], -100)
    labels = np.concatenate([np.full((3, 1), -100), labels[:, :-1]], axis=1)  # it shifts them itself
    tiles = np.concatenate([s.tiles for s in samples()])
    model.zero_grad()
    found = model(
        torch.from_numpy(batch["tokens"].astype(np.int64)),
        pixel_values=torch.from_numpy(pixel_table("bfloat16").take(tiles)),
        labels=torch.from_numpy(labels.astype(np.int64)),
    )
    found.loss.backward()
    return found.loss.item(), {name: p.grad.numpy() for name, p in model.named_parameters()}


def assert_gradients_equal(found: dict[str, np.ndarray], roles) -> None:
    whole = {name: found.get(name, np.zeros_like(x)) for name, x in case().parameters.items()}
    names, seen = exported(whole), 0
    reference = exported({name: np.full(x.shape, float(name in found), np.float32) for name, x in whole.items()})
    for name, gradient in theirs()[1].items():
        if not reference[name].any():
            continue
        seen += 1
        assert np.linalg.norm(names[name] - gradient) <= 1e-4 * np.linalg.norm(gradient), name
    assert seen > (40 if roles == ROLES else 20)


@pytest.mark.oracles
@pytest.mark.parametrize("roles", [ROLES, TEXT_ROLES], ids=["encoder trained", "encoder frozen"])
@pytest.mark.parametrize("batch", [alone, packed], ids=["alone", "packed"])
def test_loss_and_gradients_of_samples_with_pictures_equal_the_public_model(batch, roles):
    loss, gradients = ours(batch(), roles)
    assert loss == pytest.approx(theirs()[0], rel=1e-5)
    assert any(name.startswith("vision/") for name in gradients) == (roles == ROLES)
    assert_gradients_equal(gradients, roles)


# ---- mistakes --------------------------------------------------------------------------------------------------------


def _swapped(batch):
    """The pictures of one tile of two samples of a row change places."""
    tiles = batch["tiles"].copy()
    tiles[0, [0, 8]] = tiles[0, [8, 0]]
    return batch | {"tiles": tiles}


def _reversed(batch):
    tiles = batch["tiles"].copy()
    tiles[0, 1:7] = tiles[0, 6:0:-1]
    return batch | {"tiles": tiles}


def _overview_first(batch):
    tiles = batch["tiles"].copy()
    tiles[0, 1:8] = tiles[0, [7, 1, 2, 3, 4, 5, 6]]
    return batch | {"tiles": tiles}


def _neighbour_visible(batch):
    return batch | {"segment_ids": np.minimum(batch["segment_ids"], 1)}


def _weight_on_a_patch(batch):
    weights = batch["loss_weights"].copy()
    weights[batch["labels"] == VISION.image_token_index] = 1
    return batch | {"loss_weights": weights}


MISTAKES = {
    "pictures swapped between samples of a row": _swapped,
    "tiles reversed": _reversed,
    "overview tile first": _overview_first,
    "neighbour visible": _neighbour_visible,
    "weight on a patch token": _weight_on_a_patch,
}


@pytest.mark.oracles
@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_in_a_packed_row_changes_the_loss(mistake):
    assert samples()[1].tiles.shape[0] == 1 and samples()[2].tiles.shape[0] == 8
    loss, _ = ours(MISTAKES[mistake](packed()))
    assert abs(loss - theirs()[0]) > 10 * 1e-5 * theirs()[0]


@pytest.mark.oracles
def test_a_picture_moved_by_one_row_changes_the_loss():
    batch = alone()
    loss, _ = ours(batch | {"tiles": np.roll(batch["tiles"], 1, axis=0)})
    assert abs(loss - theirs()[0]) > 10 * 1e-5 * theirs()[0]


# ---- packed and unpacked ---------------------------------------------------------------------------------------------


@functools.cache
def fresh() -> Maverick:
    """A model with initial values, whose losses are near log V: rounding moves them by less than 1e-6."""
    return Maverick.init(CONFIG, 3)


def _per_token(batch) -> np.ndarray:
    """Cross-entropy of each label with a weight, in the order of the rows."""
    with jax.set_mesh(single_device_mesh()):
        placed = {name: jax.device_put(x, RULES(*FIELDS[name].axes)) for name, x in batch.items()}
        losses = _losses(fresh(), placed)
    return np.asarray(losses)[batch["loss_weights"] > 0]


@jax.jit
def _losses(model, batch):
    hidden, _ = model.hidden(Inputs.of(batch))
    return OBJECTIVE.cross_entropy(model, hidden, batch).per_token


@pytest.mark.parametrize("order", [(0, 1, 2), pytest.param((2, 1, 0), marks=pytest.mark.slow)])
def test_a_packed_row_gives_what_its_samples_give_alone(order):
    whole = [_per_token(rows_of([[samples()[i]]], LENGTH, tiles=8)) for i in order]
    np.testing.assert_allclose(_per_token(packed(*order)), np.concatenate(whole), atol=1e-6, rtol=0)
    assert np.abs(_per_token(_swapped(packed(0, 1, 2))) - _per_token(packed(0, 1, 2))).max() > 1e-3
    (loss, gradients), (expected, reference) = ours(packed(*order)), ours(alone())
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, gradient in reference.items():
        assert np.linalg.norm(gradients[name] - gradient) <= 1e-5 * np.linalg.norm(gradient), name


def test_more_room_for_tiles_changes_nothing_and_padding_tiles_have_no_gradient():
    """Whatever the padding tiles are; they are normalized floats here, because integers have no gradient."""
    rows = rows_of([[s] for s in samples()], LENGTH, tiles=10)
    number, padding = np.arange(10), [len(s.tiles) for s in samples()]
    real = number[None] < np.array(padding)[:, None]
    tiles = pixel_table("bfloat16").take(rows["tiles"])
    tiles[~real] = np.random.default_rng(5).normal(size=tiles[~real].shape)
    model = case().ours

    def loss(tiles, batch):
        totals = OBJECTIVE.totals({name: x[None] for name, x in batch.items()})
        batch = batch | {"tiles": tiles}
        return OBJECTIVE.loss(model, batch, totals, Context(jnp.zeros((), jnp.int32), {}, {}))[0]

    with jax.set_mesh(single_device_mesh()):
        placed = {name: jax.device_put(x, RULES(*FIELDS[name].axes)) for name, x in rows.items()}
        own = jax.device_put(tiles, PartitionSpec())
        found, gradient = jax.jit(jax.value_and_grad(loss))(own, placed)
    assert float(found) == pytest.approx(ours(alone())[0], rel=1e-6)
    gradient = np.asarray(gradient)
    assert (gradient[~real] == 0).all() and all(np.abs(g).max() > 0 for g in gradient[real])


@jax.jit
def _summed(model, batch):
    """The sum of the losses of a batch's labels, and its gradients."""

    def loss(model):
        return jnp.sum(jnp.where(batch["loss_weights"] > 0, _losses(model, batch), 0))

    return jax.value_and_grad(loss)(model)


def _all_of(rows, room: int, at_a_time: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Losses of each sample in the order of the rows, and the gradients of their sum; the last batch is filled up."""
    losses, total = [], None
    for first in range(0, len(rows), at_a_time):
        part = rows[first : first + at_a_time]
        empty = [[]] * (at_a_time - len(part))
        batch = rows_of([*part, *empty], PACKED_SAMPLES, tiles=room)
        with jax.set_mesh(single_device_mesh()):
            placed = {name: jax.device_put(x, RULES(*FIELDS[name].axes)) for name, x in batch.items()}
            per_token, (_, gradients) = np.asarray(_losses(fresh(), placed)), _summed(fresh(), placed)
        for row, samples in enumerate(part):
            for number in range(1, len(samples) + 1):
                counts = (batch["segment_ids"][row] == number) & (batch["loss_weights"][row] > 0)
                losses.append(per_token[row, counts])
        leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(gradients)]
        total = leaves if total is None else [a + b for a, b in zip(total, leaves, strict=True)]
    return losses, total or []


PACKED_SAMPLES, ROOM = 1280, 96
"""Tokens and tiles of a row of many samples."""


@pytest.mark.slow
def test_two_hundred_random_samples_give_packed_what_they_give_alone():
    """Of 0 to 4 pictures and up to 17 tiles. Per token within 1e-6, and gradients of the sum within 1e-5."""
    rng, made = np.random.default_rng(0), []
    for seed in range(200):
        left, grids = 17, []
        for _ in range(rng.integers(0, 5)):
            fitting = [(h, w) for h in range(1, 5) for w in range(1, 5) if h * w + (h * w > 1) <= left]
            if fitting:
                h, w = fitting[rng.integers(len(fitting))]
                left, grids = left - h * w - (h * w > 1), [*grids, (h, w)]
        made.append(sample(VISION, grids, seed, text=int(rng.integers(4, 40))))
    assert max(len(s.tokens) for s in made) <= PACKED_SAMPLES
    assert {len(s.tiles) for s in made} >= {0, 1, 17}
    lengths, tiles = (
        np.array([len(x) for x in found]) for found in zip(*((s.tokens, s.tiles) for s in made), strict=True)
    )
    rows = best_fit_in_two(lengths, tiles, PACKED_SAMPLES, ROOM)
    together = [[i for i in range(200) if rows[i] == row] for row in range(rows.max() + 1)]
    assert lengths.sum() > 0.95 * PACKED_SAMPLES * len(together)
    packed_losses, packed_gradients = _all_of([[made[i] for i in row] for row in together], ROOM, 4)
    losses, gradients = _all_of([[s] for s in made], ROOM, 4)
    for at, i in enumerate(i for row in together for i in row):
        np.testing.assert_allclose(packed_losses[at], losses[i], atol=1e-6, rtol=0)
    for ours, theirs in zip(packed_gradients, gradients, strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
