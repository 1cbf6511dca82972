"""`maverick plan --serve`: Maverick's documented bytes, and the memory that an engine then has."""

import jax
import pytest

from launch.cli import main
from launch.serving_plan import serving_plan
from maverick_jax.accounting.serving import slot_bytes, state_bytes, text_bytes
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.inference.engine.forward import Unrolled, empty_cache
from maverick_jax.inference.engine.programs import empty_slots
from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import single_device_mesh

MAVERICK = "maverick_17b_128e"


def test_maverick_keeps_48_kib_a_token_and_rings_of_9_8_gib():
    config = ModelConfig.from_name(MAVERICK, compute_dtype="bfloat16")
    assert text_bytes(config, 131_072) == {"per_token": 48 * 1024, "rings": 9 * 2**30 // 8}
    assert slot_bytes(config, 131_072) == int(7.125 * 2**30)
    assert slot_bytes(config, 1 << 20) == int(49.125 * 2**30)


@pytest.mark.parametrize(
    ("target", "context", "slots"),
    [("h200:8", 131_072, 30), ("h200:8", 1 << 20, 4), ("h100:8", 131_072, 0), ("h100:16", 131_072, 48)],
)
def test_slots_of_maverick_on_named_devices(target, context, slots):
    plan = serving_plan(MAVERICK, target, context)
    held = plan["bytes_per_device"]
    assert plan["slots"] == slots and plan["fits"] == (slots > 0)
    in_group = slots * 8 // int(target[5:])
    assert held["weights"] + in_group * held["slot"] <= held["limit"] or slots == 0
    assert held["weights"] + (in_group + 1) * held["slot"] > held["limit"]


def test_an_engine_has_the_bytes_of_its_plan():
    config = ModelConfig.from_name("tiny")
    whole = Maverick.init(config)
    with jax.set_mesh(single_device_mesh()):
        model = Unrolled.of(whole)
        cache = jax.eval_shape(lambda: empty_cache(model, 3, 300))
        slots = jax.eval_shape(lambda: empty_slots(3, config, model.rest.rules))
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    assert size(cache) == 3 * slot_bytes(config, 300)
    assert size(slots) == pytest.approx(3 * state_bytes(config), rel=0.05)


def test_the_plan_is_shown_and_decides_the_exit_code(capsys):
    assert main(["plan", MAVERICK, "--serve", "h200:8", "--context", "131072"]) == 0
    out = capsys.readouterr().out
    assert "49.15 kB a token" in out and "slots fit" in out
    assert main(["plan", MAVERICK, "--serve", "h100:8"]) == 1
    assert "no slot fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "said"),
    [("h20:8", "did you mean"), ("h200", "such as h200:8"), ("h200:24", "3 groups of 8 do not divide 128 experts")],
)
def test_targets_that_are_none_are_refused(target, said):
    with pytest.raises(InputError, match=said):
        serving_plan(MAVERICK, target, 1024)
