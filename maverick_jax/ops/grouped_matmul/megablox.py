"""The grouped product by JAX's megablox kernels, on TPUs."""

import jax

from maverick_jax.ops.grouped_matmul.by_expert import Products
from maverick_jax.ops.grouped_matmul.spec import GroupedCase
from maverick_jax.ops.kernels import Kernel
from maverick_jax.target import traced_platform

ROWS, WIDTH = 512, 1024
"""Most rows of a tile, and its other lengths: what fits the 16 MiB of fast memory of a TPU v5p."""
LEAST_ROWS = 128


def why_not(case: GroupedCase) -> str | None:
    """Why the kernels do not compute a case; None: they do."""
    if case.dtype not in ("bfloat16", "float32"):
        return f"which takes bfloat16 and float32, not {case.dtype}"
    return None


def _block(rows: int) -> int:
    return min(ROWS, -(-rows // LEAST_ROWS) * LEAST_ROWS)


def _tiling(rows: int, inner: int, columns: int) -> tuple[int, int, int]:
    return _block(rows), min(inner, WIDTH), min(columns, WIDTH)


def _rows(x, w, sizes, *, transposed: bool) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    tiling = _tiling(x.shape[0], x.shape[1], w.shape[1 if transposed else 2])
    with jax.numpy_dtype_promotion("standard"):
        return gmm(x, w, sizes, x.dtype, tiling, transpose_rhs=transposed, interpret=_interpreted())


def _weights(x, y, sizes) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    tiling = _tiling(x.shape[0], x.shape[1], y.shape[1])
    with jax.numpy_dtype_promotion("standard"):
        return tgmm(x.swapaxes(0, 1), y, sizes, x.dtype, tiling, interpret=_interpreted())


def _interpreted() -> bool:
    return traced_platform() != "tpu"


PRODUCTS = Products(
    forward=lambda x, w, sizes: _rows(x, w, sizes, transposed=False),
    backward=lambda y, w, sizes: _rows(y, w, sizes, transposed=True),
    weights=_weights,
    block=_block,
)
MEGABLOX = Kernel("megablox", PRODUCTS.run, why_not, platforms=("tpu",))
"""On other platforms the kernels are interpreted."""
