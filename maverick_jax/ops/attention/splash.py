"""Attention by JAX's splash kernels, on TPUs.

The kernels skip the blocks of scores in which no query sees a key. Which blocks those are follows from distances alone:
a query sees no key of its chunk, or window, that is `size` or more tokens back. What remains of the mask, segments and
chunks inside them, is exact by the numbers of the pieces (`Pieces`), which the kernels compare.

Grouped queries read their key/value head in place. The backward pass is two kernels, one for queries and one for keys
and values, each of which computes the scores again: the kernel that does both rounds a part of the gradient of queries
for each block of keys, and holds all parts in memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from maverick_jax.ops.attention.pieces import Pieces
from maverick_jax.ops.attention.spec import AttentionCase, MaskSpec, Segments, one_segment
from maverick_jax.ops.collectives import unchecked, vary
from maverick_jax.ops.kernels import Kernel
from maverick_jax.saved import ATTENTION
from maverick_jax.target import traced_platform

LANES = 128
QUERY_BLOCK, KEY_BLOCK = 1024, 512
"""Most queries and keys of a block. Blocks of 2,048 by 1,024 exceed the 16 MiB of fast memory of a TPU v5p."""
HEAD_DIMS = (64, 128, 256)


def why_not(case: AttentionCase) -> str | None:
    """Why the kernels do not compute a case; None: they do."""
    if case.dtype not in ("bfloat16", "float32"):
        return f"which takes bfloat16 and float32, not {case.dtype}"
    if case.head_dim not in HEAD_DIMS:
        return f"which takes head dims {', '.join(map(str, HEAD_DIMS))}, not {case.head_dim}"
    if case.heads % case.kv_heads:
        return f"which takes a multiple of {case.kv_heads} query heads, not {case.heads}"
    if case.length % LANES:
        return f"which takes rows of a multiple of {LANES} tokens, not {case.length:,}"
    return None


def splash_attention(q, k, v, mask: MaskSpec, segments: Segments | None) -> jax.Array:
    """Computes `attention_reference`; padding attends to padding. On other platforms the kernels are interpreted."""
    if segments is None and mask.chunk is not None:
        segments = one_segment(*q.shape[:2])
    numbers = None
    if segments is not None:
        numbers = segments.segment_ids if mask.chunk is None else Pieces.of(segments, mask.chunk).index
    axes = frozenset().union(*(jax.typeof(x).mat.varying for x in jax.tree.leaves((q, k, v, numbers))))
    return _attend(mask.size, *jax.tree.map(lambda x: vary(x, axes), (q, k, v, numbers)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(size, q, k, v, numbers):
    """q [B,T,N,H], k and v [B,T,K,H], and which tokens belong together, int32[B,T] or None -> [B,T,N,H]."""
    return _attend_forward(size, q, k, v, numbers)[0]


def _attend_forward(size, q, k, v, numbers):
    kernel, rows = kernel_of(size, q), (*_heads_first(q, k, v), numbers)
    with unchecked():
        out, (lse,) = jax.vmap(lambda row: kernel(*row[:3], _of_both(row[3])))(rows)
    out, lse = (checkpoint_name(_varying_as(q, x), ATTENTION) for x in (_turned(out), lse))
    return out, (q, k, v, numbers, out, lse)


def _attend_backward(size, saved, dout):
    q, k, v, numbers, out, lse = saved
    kernel, rows = kernel_of(size, q), (*_heads_first(q, k, v), numbers, _turned(out), lse, _turned(dout))

    def gradients(row):
        q, k, v, numbers, out, lse, dout = row
        saved = q, k, v, _of_both(numbers), None, out, lse, kernel.dq_mask_info, kernel.dkv_mask_info
        return kernels._splash_attention_bwd(**kernel.kwargs, res=saved, do=dout)[3:6]

    with unchecked():
        grads = jax.vmap(gradients)(rows)
    dq, dk, dv = (_turned(_varying_as(q, x)) for x in grads)
    return _times(dq, q.shape[-1] ** -0.5), dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


def _heads_first(q, k, v) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As the kernels take them, which do not scale the scores."""
    return _turned(_times(q, q.shape[-1] ** -0.5)), _turned(k), _turned(v)


def _turned(x):
    """[B,T,N,H] as [B,N,T,H], and the reverse."""
    return x.swapaxes(1, 2)


def _times(x, factor: float):
    """The product in float32, for a factor that bfloat16 has not."""
    return (x.astype(jnp.float32) * factor).astype(x.dtype)


def _of_both(numbers) -> kernels.SegmentIds | None:
    """Of queries and of keys, which are the same tokens."""
    return None if numbers is None else kernels.SegmentIds(numbers, numbers)


def _varying_as(q, x):
    return vary(x, jax.typeof(q).mat.varying)


def kernel_of(size: int | None, q) -> kernels.SplashAttentionKernel:
    """For a row of q [B,T,N,H]."""
    T, N = q.shape[1:3]
    mask = masks.CausalMask((T, T)) if size is None or size >= T else masks.LocalMask((T, T), (size - 1, 0), 0)
    queries, keys = blocks_of(T)
    blocks = kernels.BlockSizes(
        block_q=queries, block_kv=keys, block_q_dkv=queries, block_kv_dkv=keys, block_q_dq=queries, block_kv_dq=keys
    )
    return kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * N), block_sizes=blocks, save_residuals=True, interpret=traced_platform() != "tpu"
    )


def blocks_of(length: int) -> tuple[int, int]:
    """Queries and keys of a block: the most that divide a row."""
    largest = lambda most: max(n for n in range(LANES, most + 1, LANES) if length % n == 0)
    return largest(QUERY_BLOCK), largest(KEY_BLOCK)


SPLASH = Kernel("splash", splash_attention, why_not, platforms=("tpu",))
