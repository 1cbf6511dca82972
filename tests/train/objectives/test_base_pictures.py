"""Every objective trains on rows with pictures, and a teacher sees the pictures that its student sees."""

import jax
import jax.numpy as jnp
import numpy as np

from maverick_jax.checkpoint import names
from maverick_jax.model.inputs import Inputs
from maverick_jax.parameters import ROLES
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny
from tests.maverick_jax.model.test_tiles import CONFIG, batch
from tests.parity.oracle import our_model, random_parameters, shapes
from train.objectives.base import Context
from train.objectives.distill.objective import TEACHER, Distill
from train.objectives.trajectory import TrajectoryTuning
from train.trainable.config import TrainableConfig

DISTILL = Distill(teacher="the same model")


def model(seed: int = 0):
    return our_model(CONFIG, random_parameters(shapes(CONFIG), seed))


def placed(**changes) -> dict[str, jax.Array]:
    fields = batch() | {"kinds": np.where(batch()["loss_weights"] > 0, 0, 255).astype(np.uint8)}
    return {name: x[0] for name, x in tiny.placed(fields | changes).items()}


@jax.jit
def divergence(student, teacher, rows):
    whole = {name: x[None] for name, x in rows.items()}
    context = Context(jnp.zeros((), jnp.int32), DISTILL.init(), {TEACHER: teacher})
    totals = DISTILL.totals(whole)
    _, sums = DISTILL.loss(student, rows, totals, context)
    return sums["distilled"].terms.divergence / totals["weight"]


def test_a_teacher_sees_the_pictures_of_its_student():
    """It is the same model, so that its distribution is the student's exactly if it has the same inputs."""
    with jax.set_mesh(single_device_mesh()):
        assert abs(divergence(model(), model(), placed())) < 1e-6
        blind = placed()
        tiles = blind.pop("tiles")
        assert tiles.dtype == jnp.uint8
        assert divergence(model(), model(1), placed()) > 0.1
        # what a teacher without the pictures would say
        logits = jax.jit(lambda m, rows: m.hidden(Inputs.of(rows))[0])
        assert np.abs(np.asarray(logits(model(), blind)) - np.asarray(logits(model(), placed()))).max() > 0.1


def test_trajectories_with_pictures_train_every_part():
    with jax.set_mesh(single_device_mesh()):
        init, step = tiny.jitted(CONFIG, objective=TrajectoryTuning(), trainable=TrainableConfig(parameters=ROLES))
        state = init(0)
        before = {name: np.array(x) for name, x in names.flatten(state.model).items()}
        fields = batch() | {"kinds": np.where(batch()["loss_weights"] > 0, 0, 255).astype(np.uint8)}
        state, metrics = step(state, tiny.placed(fields))
    assert np.isfinite(metrics["loss"])
    assert [name for name, x in names.flatten(state.model).items() if np.array_equal(x, before[name])] == []
