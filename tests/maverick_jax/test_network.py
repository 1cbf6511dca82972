"""The purposes of the network's keys, and which purposes each check ignores."""

from maverick_jax import pretrained
from maverick_jax.config import ModelConfig
from maverick_jax.network import Network, Purpose
from train import identity


def test_every_field_has_one_purpose():
    found = [key for purpose in Purpose for key in ModelConfig.keys_of(purpose)]
    assert sorted(found) == sorted(Network.model_fields) == sorted(ModelConfig.model_fields)


def test_what_may_differ_by_reader():
    of_first_weights = set(Network.model_fields) - set(ModelConfig.keys_of(Purpose.NETWORK))
    assert of_first_weights == {
        *("remat", "compute_dtype", "param_dtype", "balance"),
        *("router_dtype", "initializer_range"),
    }
    assert set(ModelConfig.keys_of(*pretrained._FREE)) == {"param_dtype", "compute_dtype", "remat", "balance"}
    assert set(identity._FREE) == {"remat", "compute_dtype", "balance"}
