"""What to do about a mesh of another number of devices."""

import re

import pydantic
import pytest

from maverick_jax.errors import InputError
from maverick_jax.sharding import MeshConfig, ShardingRules


@pytest.mark.parametrize(
    ("mesh", "devices", "said"),
    [
        (
            {"data": 1, "fsdp": 2},
            1,
            "mesh: fsdp=2 needs 2 devices; this job has 1. mesh.fsdp=1 fits, or start the job on 2 devices (on a CPU, "
            "JAX_NUM_CPU_DEVICES=2 simulates them)",
        ),
        ({"data": 4}, 8, "mesh: data=4 needs 4 devices; this job has 8. mesh.data=8 fits"),
        ({"data": 2, "fsdp": 4}, 6, "mesh: data=2, fsdp=4 needs 8 devices; this job has 6. mesh.fsdp=3 fits"),
        ({"data": 2, "fsdp": 4}, 3, "needs 8 devices; this job has 3. use smaller axes, or start the job on 8"),
        ({"fsdp": 3}, 8, "needs a multiple of 3 devices; this job has 8. mesh.fsdp=8 fits"),
    ],
)
def test_a_mesh_that_does_not_fit_says_what_does(mesh, devices, said):
    with pytest.raises(InputError, match=re.escape(said)):
        MeshConfig(**mesh).resolve(devices)


@pytest.mark.parametrize(
    ("mesh", "default"),
    [
        ({"fsdp": -1}, "; data is -1 by default: set data: 1"),
        ({"data": -1, "fsdp": -1}, ""),
        ({"data": 1, "fsdp": -1, "expert": -1}, ""),
    ],
)
def test_a_second_axis_of_all_remaining_devices_is_refused(mesh, default):
    with pytest.raises(pydantic.ValidationError) as error:
        MeshConfig.model_validate(mesh)
    (detail,) = error.value.errors()
    assert detail["msg"] == f"Value error, at most one axis may be -1 (all remaining devices){default}"


def test_what_is_said_to_fit_fits():
    assert MeshConfig(data=2, fsdp=3).resolve(6)["fsdp"] == 3
    assert MeshConfig(data=8).resolve(8)["data"] == 8


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"length": "tensor"}, "rules.stream: ['context', 'tensor'] does not begin with the axes of rules.length, "
                               "['tensor']"),
        ({"residual": "tensor"}, "rules.residual: mesh axis 'tensor' also splits the positions of the residual stream; "
                                 "expected other axes, or rules.stream: ['context']"),
        ({"batch": ["data", "context"]}, "or rules.length: null and rules.stream: ['tensor']"),
    ],
)  # fmt: skip
def test_rules_of_the_residual_stream_that_contradict_others_are_refused(rules, said):
    with pytest.raises(pydantic.ValidationError, match=re.escape(said)):
        MeshConfig(rules=rules)
    assert MeshConfig(rules=rules | {"length": rules.get("length"), "stream": rules.get("length")}).sharding_rules()
    assert MeshConfig(rules={"stream": None}).sharding_rules()


def test_positions_are_split_between_blocks_only_if_they_divide():
    rules, sizes = ShardingRules(), {"context": 2, "tensor": 4}
    assert rules.within_blocks(16, sizes) == ShardingRules(length=None).within_blocks(16, sizes)[1:] == ("tensor",)
    assert rules.within_blocks(16, {"tensor": 4}) == rules.within_blocks(16, {"context": 1, "tensor": 4}) == ("tensor",)
    assert rules.within_blocks(12, sizes) == rules.within_blocks(1, sizes) == rules.within_blocks(16, {}) == ()
