"""As many experts as Maverick has, on text, divided among eight devices."""

import numpy as np
import pytest

from tests.helpers.small_run import losses

EXPERTS = ["model.num_local_experts=128", "optimizer.accumulation_steps=1", "run.steps=16", "run.eval_every=16"]


@pytest.mark.slow
def test_eight_devices_train_128_experts_to_the_losses_of_one(runs, tmp_path):
    one, eight = tmp_path / "one", tmp_path / "eight"
    runs.train(one, *EXPERTS)
    runs.train(eight, *EXPERTS, "mesh={data: 1, expert: 8}", devices=8)
    expected = losses(one)
    assert len(expected) == 16 and expected[-1] < expected[0] - 1  # it learns
    np.testing.assert_allclose(losses(eight), expected, rtol=0, atol=1e-5)
