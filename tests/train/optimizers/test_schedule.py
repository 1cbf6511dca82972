"""Learning rates at chosen steps of each schedule."""

import jax.numpy as jnp
import numpy as np
import pytest

from train.optimizers import AdamW


@pytest.mark.parametrize(
    ("shape", "points"),
    [
        ("constant", {0: 0.25, 3: 1.0, 50: 1.0, 99: 1.0}),
        ("cosine", {0: 0.25, 3: 1.0, 4: 1.0, 52: 0.55, 100: 0.1}),
        ("wsd", {0: 0.25, 3: 1.0, 79: 1.0, 90: 0.55, 100: 0.1}),
    ],
)
def test_schedules(shape, points):
    schedule = AdamW(learning_rate=1.0, warmup_steps=4, schedule=shape).schedule_of(100)
    for step, expected in points.items():
        np.testing.assert_allclose(schedule(jnp.int32(step)), expected, rtol=1e-5, err_msg=f"step {step}")


def test_wsd_that_has_no_time_to_be_stable_ends_at_its_minimum():
    schedule = AdamW(learning_rate=1.0, warmup_steps=50, schedule="wsd", decay_fraction=1.0).schedule_of(100)
    for step, expected in {49: 1.0, 50: 1.0, 75: 0.55, 100: 0.1}.items():
        np.testing.assert_allclose(schedule(jnp.int32(step)), expected, rtol=1e-5, err_msg=f"step {step}")
