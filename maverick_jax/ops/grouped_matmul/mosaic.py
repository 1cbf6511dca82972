"""The grouped product by JAX's Mosaic kernels, on NVIDIA Hopper GPUs.

The kernels add up in float32 in registers and round once, weight gradients too: no float32 sum is in memory.
"""

import types
from collections.abc import Callable
from typing import Any

import jax

from maverick_jax.ops.grouped_matmul.by_expert import Products
from maverick_jax.ops.grouped_matmul.spec import GroupedCase
from maverick_jax.ops.kernels import Kernel
from maverick_jax.target import traced_capability, traced_core_count

BLOCK = 128
"""Rows and columns of a block of results."""
DEPTH, STAGES = 64, 4
"""Of the operands of a block: length of a part that is loaded at once, and number of parts in fast memory."""
ACROSS = 8
"""Most blocks side by side that are computed before those below them, so that both operands' parts are read from the
cache: 132 blocks at a time are then about as wide as high."""
MAX_EXPERTS = 128
"""The kernels' code has a part for each expert."""


def why_not(case: GroupedCase) -> str | None:
    """Why the kernels do not compute a case; None: they do."""
    capability = traced_capability()
    if case.dtype not in ("bfloat16", "float16"):
        return f"which takes bfloat16 and float16, not {case.dtype}"
    if capability is None or capability[0] != 9:
        return "which needs a GPU of compute capability 9 (Hopper)"
    if case.model % BLOCK or case.hidden % BLOCK:
        return f"which takes widths that are multiples of {BLOCK}, not {case.model} and {case.hidden}"
    if case.experts > MAX_EXPERTS:
        return f"which takes up to {MAX_EXPERTS} experts, not {case.experts}"
    return missing()


def missing() -> str | None:
    """Why this installation has no such kernels; None: it has."""
    try:
        _modules()
    except ImportError as error:
        return f"whose modules of JAX cannot be imported ({error})"
    return None


def _modules() -> tuple[types.ModuleType, types.ModuleType]:
    """Imported where they are used: they import parts of JAX that other platforms lack."""
    from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu, transposed_ragged_dot_mgpu

    return ragged_dot_mgpu, transposed_ragged_dot_mgpu


def _settings(columns: int) -> dict[str, int]:
    """Of a call with this many columns of results."""
    across = next(n for n in range(ACROSS, 0, -1) if columns // BLOCK % n == 0)
    blocks = {"block_m": BLOCK, "block_n": BLOCK, "block_k": DEPTH}
    return {**blocks, "max_concurrent_steps": STAGES, "grid_block_n": across}


class _ForTarget:
    """The module `jax` as a kernel sees it that asks the devices at hand for their number of cores: it gets that of
    the devices that the program is compiled for."""

    def devices(self) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(core_count=traced_core_count())]

    def __getattr__(self, name: str) -> Any:
        return getattr(jax, name)


def _for_target(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    found = types.FunctionType(function.__code__, function.__globals__ | {"jax": _ForTarget()}, function.__name__)
    found.__kwdefaults__ = function.__kwdefaults__
    return found


# ---- the primitives --------------------------------------------------------------------------------------------------


def call_rows(x, w, sizes, *, transposed: bool) -> jax.Array:
    """x [P, K] times w [E, K, N], or [E, N, K] if `transposed` -> [P, N]; rows of no expert are not written."""
    columns = w.shape[1 if transposed else 2]
    return _modules()[0].ragged_dot(x, w, group_sizes=sizes, transpose_rhs=transposed, **_settings(columns))


def call_weights(x, y, sizes) -> jax.Array:
    """x [P, K] and y [P, N] -> [E, K, N]. NaN in the rows that follow an expert's would be in its result."""
    return _for_target(_modules()[1].transposed_ragged_dot)(x, y, group_sizes=sizes, **_settings(y.shape[1]))


PRODUCTS = Products(
    forward=lambda x, w, sizes: call_rows(x, w, sizes, transposed=False),
    backward=lambda y, w, sizes: call_rows(y, w, sizes, transposed=True),
    weights=lambda x, y, sizes: call_weights(x, y, sizes),
    block=lambda rows: BLOCK,
)
MOSAIC = Kernel("mosaic", PRODUCTS.run, why_not, platforms=("gpu",))
