"""Every kernel against the slow twin, in value and gradient, on the same cases.

A kernel runs for real where its devices are. Elsewhere megablox is interpreted, and Mosaic's calls are replaced by a
stand-in that reads and writes the same elements: all but the kernel itself is tested.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maverick_jax.ops import grouped_matmul
from maverick_jax.ops.dispatch import routed_experts
from maverick_jax.ops.grouped_matmul import KERNELS, grouped_swiglu, grouped_swiglu_reference, megablox, mosaic
from maverick_jax.ops.grouped_matmul.plain import PLAIN
from maverick_jax.ops.grouped_matmul.spec import GroupedCase
from maverick_jax.ops.grouped_matmul.tiles import TILES, tiled_swiglu
from maverick_jax.ops.kernels import recorded
from maverick_jax.sharding import ShardingRules
from maverick_jax.target import traced_platform
from tests.helpers import mosaic_stand_in

ROUTINGS = {
    "uniform": lambda M, E: np.random.default_rng(5).integers(0, E + 1, M),
    "one expert": lambda M, E: np.full(M, E // 2),
    "some without rows": lambda M, E: np.where(np.arange(M) % 3 == 0, E + 1, 1 + 2 * (np.arange(M) % 2)),
    "none": lambda M, E: np.full(M, E),
}
TILE_LOOPS = [dataclasses.replace(TILES, name=f"tiles of {n}", run=functools.partial(tiled_swiglu, tile=n))
              for n in (4, 32)]  # fmt: skip


def runs_here(kernel) -> bool:
    return not kernel.platforms or traced_platform() in kernel.platforms


def replaced(kernel, monkeypatch):
    """Makes a kernel of another platform run here, in small blocks."""
    if kernel.name == "mosaic":
        mosaic_stand_in.install(monkeypatch)
        blocks = dataclasses.replace(mosaic.PRODUCTS, block=lambda rows: 16)
        return dataclasses.replace(kernel, run=blocks.run)
    if kernel.name == "megablox":
        monkeypatch.setattr(megablox, "LEAST_ROWS", 8)
        monkeypatch.setattr(megablox, "ROWS", 16)
        monkeypatch.setattr(megablox, "WIDTH", 8)
    return kernel


def case_of(routing, M, E, dtype=np.float32):
    D, F, rng = 16, 12, np.random.default_rng(0)
    make = lambda *shape, scale: jnp.asarray(scale * rng.normal(size=shape), dtype)
    expert = jnp.asarray(ROUTINGS[routing](M, E), jnp.int32)
    return (make(M, D, scale=1.0), make(E, D, 2, F, scale=0.3), make(E, F, D, scale=0.3)), expert, rng.normal(size=D)


def both(f, args, expert, mark):
    scored = lambda *args: jnp.sum(f(*args, expert).astype(jnp.float32) * jnp.asarray(mark, jnp.float32)[None])
    return jax.jit(f)(*args, expert), *jax.jit(jax.grad(scored, (0, 1, 2)))(*args)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("M", [50, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", [PLAIN, *TILE_LOOPS, *KERNELS], ids=lambda kernel: kernel.name)
def test_kernels_equal_the_reference(kernel, M, routing, monkeypatch):
    """In float32 where a kernel is replaced or takes it; else in bfloat16, to four roundings of up to 0.4%."""
    real, E = runs_here(kernel), 1 if kernel is PLAIN else 5
    dtype = jnp.bfloat16 if real and kernel.platforms else jnp.float32
    args, expert, mark = case_of(routing, M, E, dtype)
    if real and (reason := kernel.why_not(GroupedCase.of(*args[:2]))):
        pytest.skip(f"not {kernel.name}, {reason}")
    kernel = kernel if real else replaced(kernel, monkeypatch)
    expected = both(grouped_swiglu_reference, [x.astype(jnp.float32) for x in args], expert, mark)
    for found, exact in zip(both(kernel.run, args, expert, mark), expected, strict=True):
        assert found.dtype == dtype
        tolerance = 2e-5 if dtype == jnp.float32 else 0.015
        atol = tolerance * max(1.0, float(jnp.abs(exact).max()))
        np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("kernel", [PLAIN, *KERNELS], ids=lambda kernel: kernel.name)
def test_bfloat16_gradients_are_near_those_of_float32(kernel, monkeypatch):
    """Each gradient follows some four roundings of 0.1% on average; and it is not all too large or too small."""
    args, expert, mark = case_of("uniform", 256, 1 if kernel is PLAIN else 5, jnp.bfloat16)
    kernel = kernel if runs_here(kernel) else replaced(kernel, monkeypatch)
    expected = both(grouped_swiglu_reference, [x.astype(jnp.float32) for x in args], expert, mark)
    for found, exact in zip(both(kernel.run, args, expert, mark), expected, strict=True):
        found, exact = (np.asarray(x, np.float64) for x in (found, exact))
        assert np.linalg.norm(found - exact) < 0.006 * np.linalg.norm(exact)
        assert abs(np.sum(found * exact) / np.sum(exact * exact) - 1) < 0.002


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_kernels_inside_the_exchange_equal_the_reference(kernel, mesh_of, monkeypatch):
    """Two experts on each of four devices, whose results vary as its rows and weights do."""
    if not runs_here(kernel):
        kernel = dataclasses.replace(replaced(kernel, monkeypatch), platforms=(), why_not=lambda case: None)
    monkeypatch.setattr(grouped_matmul, "KERNELS", (kernel,))
    rules, (B, T, E) = ShardingRules(), (8, 6, 8)
    args, _, mark = case_of("none", B * T, E)
    chosen = np.random.default_rng(6).integers(0, E + 1, (B, T, 1)).astype(np.int32)
    expected = both(grouped_swiglu_reference, args, jnp.asarray(chosen.reshape(-1)), mark)
    with mesh_of(data=2, expert=4):
        tokens = rules("batch", "length", None)
        ones = jax.device_put(np.ones((B, T, 1), np.float32), tokens)
        specs = tokens, P(rules.experts, None, None, rules.expert_mlp), P(rules.experts, rules.expert_mlp, None)
        rows, w_in, w_out = args
        placed = [jax.device_put(a, s) for a, s in zip((rows.reshape(B, T, -1), w_in, w_out), specs, strict=True)]
        f = lambda x, w_in, w_out, chosen: routed_experts(x, ones, chosen, w_in, w_out, rules)
        scored = lambda *args: jnp.sum(
            f(*args, jax.device_put(chosen, tokens)) * jnp.asarray(mark, np.float32)[None, None]
        )
        found = jax.jit(f)(*placed, jax.device_put(chosen, tokens)), *jax.jit(jax.grad(scored, (0, 1, 2)))(*placed)
    for one, exact in zip(found, expected, strict=True):
        atol = 2e-5 * max(1.0, float(jnp.abs(exact).max()))
        np.testing.assert_allclose(np.asarray(one).reshape(exact.shape), exact, rtol=2e-5, atol=atol)


@pytest.mark.parametrize(("E", "name"), [(1, "plain"), (5, "tiles")])
def test_the_kernel_is_chosen_by_experts_and_platform(E, name):
    args, expert, _ = case_of("uniform", 50, E)
    with recorded() as found:
        grouped_swiglu(*args, expert)
    experts = "1 expert" if E == 1 else "5 experts"
    assert [str(choice) for choice in found] == [
        f"grouped product (50 rows of 16, {experts} of 12, float32): {name}",
    ]
