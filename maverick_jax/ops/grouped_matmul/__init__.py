"""The experts' SwiGLU over rows that each belong to one expert: one signature, several kernels, one slow twin. All are
exact and have static shapes; no row is dropped.

`jax.lax.ragged_dot` is not among them: it multiplies every row with every expert on CPUs and GPUs, and, in the gradient
of the weights, on TPUs (jax 0.10.2).
"""

import jax

from maverick_jax.ops.grouped_matmul.megablox import MEGABLOX
from maverick_jax.ops.grouped_matmul.mosaic import MOSAIC
from maverick_jax.ops.grouped_matmul.plain import PLAIN
from maverick_jax.ops.grouped_matmul.spec import GroupedCase, grouped_swiglu_reference
from maverick_jax.ops.grouped_matmul.tiles import TILES, tile_height
from maverick_jax.ops.kernels import choose

__all__ = ["KERNELS", "grouped_swiglu", "grouped_swiglu_reference", "tile_height"]
KERNELS = (MOSAIC, MEGABLOX, TILES)
"""Of several experts, in the order in which they are preferred."""


@jax.named_scope("experts")
def grouped_swiglu(x, w_in, w_out, expert) -> jax.Array:
    """(silu(x gate_e) * (x up_e)) down_e for each row's expert e.

    x [M, D]; w_in [E, D, 2, F] (0 gate, 1 up); w_out [E, F, D]; expert int32[M], E or more for rows without an expert
    here, whose result is zero. Returns [M, D] in x's dtype.
    """
    case = GroupedCase.of(x, w_in)
    kernels = (PLAIN,) if case.experts == 1 else KERNELS
    return choose(f"grouped product ({case})", kernels, case).run(x, w_in, w_out, expert)
