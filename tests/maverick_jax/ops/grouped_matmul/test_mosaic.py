"""Mosaic's grouped product up to the kernel: where it is refused, and what JAX's functions are given."""

import dataclasses
import inspect
import sys

import jax
import jax.numpy as jnp
import pytest

from maverick_jax.ops.grouped_matmul import mosaic
from maverick_jax.ops.grouped_matmul.mosaic import why_not
from maverick_jax.ops.grouped_matmul.spec import GroupedCase

CASE = GroupedCase(rows=32768, experts=16, model=5120, hidden=8192, dtype="bfloat16")


@pytest.mark.parametrize(
    ("changes", "capability", "said"),
    [
        ({}, (9, 0), None),
        ({"rows": 1000, "experts": 128}, (9, 0), None),
        ({}, (10, 0), "compute capability 9 (Hopper)"),
        ({}, (8, 0), "compute capability 9 (Hopper)"),
        ({}, None, "compute capability 9 (Hopper)"),
        ({"dtype": "float32"}, (9, 0), "takes bfloat16 and float16, not float32"),
        ({"dtype": "bfloat16 x float32"}, (9, 0), "not bfloat16 x float32"),
        ({"model": 5184}, (9, 0), "multiples of 128, not 5184 and 8192"),
        ({"hidden": 64}, (9, 0), "multiples of 128, not 5120 and 64"),
        ({"experts": 129}, (9, 0), "takes up to 128 experts, not 129"),
    ],
)
def test_reasons_why_not(changes, capability, said, monkeypatch):
    monkeypatch.setattr(mosaic, "traced_capability", lambda: capability)
    reason = why_not(dataclasses.replace(CASE, **changes))
    assert reason is None if said is None else said in (reason or "")


def test_an_installation_without_the_modules_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.ops.gpu.ragged_dot_mgpu", None)
    monkeypatch.delattr("jax.experimental.pallas.ops.gpu.ragged_dot_mgpu", raising=False)
    monkeypatch.setattr(mosaic, "traced_capability", lambda: (9, 0))
    assert "modules of JAX cannot be imported" in (why_not(CASE) or "")


def test_the_functions_of_this_jax_take_the_settings():
    for function in (mosaic._modules()[0].ragged_dot, mosaic._modules()[1].transposed_ragged_dot):
        required = {p.name for p in inspect.signature(function).parameters.values()
                    if p.kind is p.KEYWORD_ONLY and p.default is p.empty}  # fmt: skip
        assert required == {"group_sizes", *mosaic._settings(5120)}


@pytest.mark.parametrize(("columns", "across"), [(16384, 8), (5120, 8), (128 * 7, 7), (128 * 11, 1), (128, 1)])
def test_blocks_side_by_side_divide_the_columns(columns, across):
    assert mosaic._settings(columns)["grid_block_n"] == across


def test_a_kernel_gets_the_core_count_of_the_target(monkeypatch):
    def kernel(x, *, more: int = 1):
        return x + jax.devices()[0].core_count + more, jax.lax.add(x, x)  # type: ignore[attr-defined]

    monkeypatch.setattr(mosaic, "traced_core_count", lambda: 132)
    here, there = jnp.int32(2), mosaic._for_target(kernel)
    assert [int(x) for x in there(here)] == [135, 4]
    assert [int(x) for x in there(here, more=5)] == [139, 4]
    assert not hasattr(jax.devices()[0], "core_count") or jax.devices()[0].core_count != 132


def test_the_weights_kernel_asks_devices_for_nothing_but_their_cores():
    source = inspect.getsource(mosaic._modules()[1].transposed_ragged_dot)
    assert source.count("jax.devices()") == source.count("jax.devices()[0].core_count") == 1
