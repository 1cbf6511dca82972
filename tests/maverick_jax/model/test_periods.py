"""The periods of a model as stages of a pipeline."""

import jax
import numpy as np
import pytest

from maverick_jax import Maverick
from maverick_jax.errors import InputError
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.layers import Taps
from maverick_jax.model.periods import num_microbatches
from maverick_jax.sharding import ShardingRules, make_mesh, single_device_mesh
from tests.helpers import tiny

TAPS = Taps(hidden=(1, 4), router=(3,))


def test_the_insides_of_layers_are_those_of_one_device():
    """Of layers in different stages, with a tail, fewer microbatches than rows, and positions that all rows share."""
    config = tiny.model_config(num_hidden_layers=5, no_rope_layer_interval=2)
    tokens = tiny.batch(config)["tokens"][0]
    found = []
    for mesh in (single_device_mesh(), make_mesh({"pipeline": 2, "fsdp": 2}, jax.devices()[:4])):
        rules = ShardingRules(microbatches=2)
        model = Maverick.init(config, mesh=mesh, rules=rules)
        with jax.set_mesh(mesh):
            placed = jax.device_put(tokens, rules("batch", "length"))
            found.append(jax.jit(lambda model, tokens: model.tapped(Inputs(tokens), TAPS))(model, placed))
    one, staged = found
    assert jax.tree.structure(one) == jax.tree.structure(staged)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), staged, one)


def test_microbatches_must_divide_the_rows_of_a_device():
    with jax.set_mesh(make_mesh({"pipeline": 2, "fsdp": 2}, jax.devices()[:4])):
        assert num_microbatches(8, ShardingRules()) == 4
        assert num_microbatches(8, ShardingRules(microbatches=2)) == 2
        with pytest.raises(InputError, match=r"mesh\.microbatches: 3 does not divide the 4 rows of a device"):
            num_microbatches(8, ShardingRules(microbatches=3))
