"""The purposes of the network's keys, and which purposes each check ignores."""

import math

import jax
import pytest
from flax import nnx

from maverick_jax import model_source, pretrained
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.inference.engine.forward import Scanned, Unrolled
from maverick_jax.model.transformer import Maverick
from maverick_jax.network import Network, Purpose
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny
from train import identity


def test_every_field_has_one_purpose():
    found = [key for purpose in Purpose for key in ModelConfig.keys_of(purpose)]
    assert sorted(found) == sorted(Network.model_fields) == sorted(ModelConfig.model_fields)


def test_what_may_differ_by_reader():
    of_first_weights = set(Network.model_fields) - set(ModelConfig.keys_of(Purpose.NETWORK))
    assert of_first_weights == {
        *("remat", "compute_dtype", "matmul_dtype", "param_dtype", "balance"),
        *("router_dtype", "initializer_range", "expert_capacity_factor", "latent"),
    }
    of_training = {"remat", "compute_dtype", "matmul_dtype", "balance", "expert_capacity_factor"}
    assert set(identity._FREE) == of_training
    assert set(ModelConfig.keys_of(*model_source._FREE)) == {"param_dtype", *of_training}


def test_an_expert_of_limited_capacity_takes_its_share_times_the_factor():
    of = lambda factor, length, k=1: tiny.model_config(  # of 8 experts
        expert_capacity_factor=factor, num_experts_per_tok=k
    ).expert_limit(length)
    assert of(None, 64) is None and of(1.0, 64) == 8 and of(1.25, 64) == 10
    assert of(1.01, 64) == 9 and of(1.25, 64, 2) == 20
    assert of(1.1, 80) == 11, "1.1 x 10 in floats is more"
    assert of(1.0, 1) == 1 and of(100.0, 64) == 64, "at least one, and no more than there are"


def test_a_loaded_model_drops_no_token_and_one_that_does_generates_none():
    limited = tiny.model_config(expert_capacity_factor=1.5)
    assert limited.dropless == pretrained._computing_in("float32", limited) == tiny.model_config(param_dtype="float32")
    with jax.set_mesh(single_device_mesh()):
        model = nnx.eval_shape(lambda: Maverick(limited, tiny.RULES, rngs=nnx.Rngs(0)))
        for layers in (Scanned, Unrolled):
            with pytest.raises(InputError, match="generation does not; expected null"):
                layers.of(model)


@pytest.mark.parametrize("factor", [0.99, 0.0, -1.0, math.inf, math.nan])
def test_capacity_factors_below_one_are_refused(factor):
    with pytest.raises(ValueError, match="expert_capacity_factor"):
        tiny.model_config(expert_capacity_factor=factor)


def test_a_changed_copy_has_its_own_layers():
    config = tiny.model_config(interleave_moe_layer_step=2, no_rope_layer_interval=2)
    assert [spec.moe for spec in config.period] == [False, True]
    assert all(spec.moe for spec in config.model_copy(update={"interleave_moe_layer_step": 1}).period)
