"""The comparison of gradients before a run that offloads."""

import dataclasses

import jax
import pytest

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.saved import Remat, SavedNames
from maverick_jax.sharding import ShardingRules, make_mesh
from maverick_jax.target import Target
from tests.helpers import tiny
from train.config import check_split
from train.faults import offloaded
from train.faults.offloaded import check_offload, kept, small_model

OFFLOADS = Remat(keep=SavedNames(all_layers=("attention",)), offload=SavedNames(moe_layers=("mlp", "received")))
CONFIG = tiny.model_config(no_rope_layer_interval=2, remat=OFFLOADS)
SIZES = {"fsdp": 2, "expert": 2, "context": 2}


@dataclasses.dataclass(frozen=True)
class WithoutHostMemory(Target):
    memories = frozenset({"device"})


def check(config: ModelConfig, target: Target | None = None) -> None:
    target = target or Target.local()
    check_offload(config, tiny.RULES, make_mesh(SIZES, target.devices), target)


@pytest.mark.slow
def test_gradients_with_offload_pass_and_others_are_refused(monkeypatch):
    check(CONFIG)
    right = offloaded.gradients

    def wrong(config, rules):
        found = right(config, rules)
        if config.remat == OFFLOADS:
            found["periods/layer_1/moe/shared/up"] *= 1.05
        return found

    monkeypatch.setattr(offloaded, "gradients", wrong)
    with pytest.raises(
        InputError, match=r"model.remat.offload: .* 8 x cpu.* periods/layer_1/moe/shared/up is off by 0.05"
    ):
        check(CONFIG)


def test_gradients_that_are_no_numbers_are_refused(monkeypatch):
    ones = jax.numpy.ones(2)
    broken = lambda config, _: {"a": ones * jax.numpy.nan if config.remat == OFFLOADS else ones, "b": ones}
    monkeypatch.setattr(offloaded, "gradients", broken)
    with pytest.raises(InputError, match="the gradient of a is off by nan"):
        check(CONFIG)


def test_devices_without_host_memory_are_refused_before_anything_is_computed():
    with pytest.raises(InputError, match=r"model.remat.offload: cpu has no memory pinned_host"):
        check(CONFIG, WithoutHostMemory(tuple(jax.devices())))


def test_a_model_that_offloads_nothing_is_not_checked(monkeypatch):
    monkeypatch.setattr(offloaded, "gradients", lambda *_: pytest.fail("gradients were computed"))
    check(kept(CONFIG))


@pytest.mark.parametrize("name", ["maverick_17b_128e", "scout_17b_16e"])
def test_the_small_model_has_layers_of_the_same_kinds_and_fits_the_mesh(name):
    config, sizes = ModelConfig.from_name(name, remat=OFFLOADS), {"fsdp": 4, "expert": 16, "tensor": 8, "pipeline": 3}
    small = small_model(config, ShardingRules(), sizes)
    check_split("the small model", small, ShardingRules(), sizes)
    assert {*small.layers} == {*config.layers} and small.num_periods == 2 * 3 and small.remat == OFFLOADS
    assert small.num_parameters() < 2e9 and ModelConfig(**small.model_dump()) == small


def test_what_is_offloaded_is_kept_in_the_comparison():
    assert kept(CONFIG).remat == Remat(keep=SavedNames(all_layers=("attention",), moe_layers=("mlp", "received")))
