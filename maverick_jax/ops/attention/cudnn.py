"""Attention by cuDNN's fused kernels, on NVIDIA GPUs from Hopper on.

Packed rows go in as pieces (`Pieces`) by their offsets. A kernel takes a fixed number of pieces. The first call takes
all pieces of rows with ordinary documents. Rows with more pieces need further calls, so that the result is exact for
any number of pieces. cuDNN gives logsumexp for each piece at full length; what is kept is float32[B, N, T].

JAX's own packed form is not used: in version 0.10.2 it multiplies the offsets of keys by the number of query heads
(jax-ml/jax #39521). The primitives below it take offsets as they are.
"""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maverick_jax.ops.attention.pieces import Pieces
from maverick_jax.ops.attention.spec import AttentionCase, MaskSpec, Segments, one_segment
from maverick_jax.ops.kernels import Kernel
from maverick_jax.saved import ATTENTION
from maverick_jax.target import traced_capability

TOKENS_PER_PIECE = 512
"""Pieces are at least this long on average, if the first call takes them all. Empty places of a call cost time too."""
MIN_PIECES = 8
FURTHER_CALLS = "further_calls"
"""The scope of the loop over the calls after the first."""
FIRST_CAPABILITY = (9, 0)
MAX_HEAD_DIM = 256


def why_not(case: AttentionCase) -> str | None:
    """Why cuDNN does not compute a case; None: it does."""
    capability = traced_capability()
    if case.dtype not in ("bfloat16", "float16"):
        return f"which takes bfloat16 and float16, not {case.dtype}"
    if capability is None or capability < FIRST_CAPABILITY:
        return "which needs a GPU of compute capability 9.0 (Hopper) or higher"
    if case.head_dim % 8 or case.head_dim > MAX_HEAD_DIM:
        return f"which takes head dims up to {MAX_HEAD_DIM} in multiples of 8, not {case.head_dim}"
    if case.heads % case.kv_heads:
        return f"which takes a multiple of {case.kv_heads} query heads, not {case.heads}"
    if case.packed and case.batch * case.length * case.heads * case.head_dim >= 2**31:
        return "whose offsets of packed rows reach 2^31 elements and not more"
    return missing()


def missing() -> str | None:
    """Why this installation has no cuDNN; None: it has."""
    from jax._src.lib import cuda_versions

    if cuda_versions is None:
        return "which JAX's CUDA plugin brings, and it is not installed"
    try:
        cuda_versions.cudnn_get_version()
    except RuntimeError as error:
        return f"whose library was not found ({error})"
    return None


def cudnn_attention(q, k, v, mask: MaskSpec, segments: Segments | None) -> jax.Array:
    """Computes `attention_reference`, with zeros at padding."""
    if segments is None and mask.chunk is not None:
        segments = one_segment(*q.shape[:2])
    return _attend(mask, q, k, v, segments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(mask, q, k, v, segments):
    return _attend_forward(mask, q, k, v, segments)[0]


def _attend_forward(mask, q, k, v, segments):
    out, lse = (checkpoint_name(x, ATTENTION) for x in forward(q, k, v, mask, segments))
    return out, (q, k, v, segments, out, lse)


def _attend_backward(mask, saved, dout):
    q, k, v, segments, out, lse = saved
    return *backward(q, k, v, mask, segments, out, lse, dout), None


_attend.defvjp(_attend_forward, _attend_backward)


def forward(q, k, v, mask: MaskSpec, segments: Segments | None) -> tuple[jax.Array, jax.Array]:
    """Output [B,T,N,H] and logsumexp of the scores float32[B,N,T]; at padding 0 and infinity."""
    if segments is None:
        return call_forward(q, k, v, window=mask.window, offsets=None)
    rounds = Rounds.of(q, mask, segments)

    def one_round(i, found):
        folded = [rounds.fold(x) for x in (q, k, v)]
        out, stats = call_forward(*folded, window=mask.window, offsets=rounds.offsets(i, k.shape[2]))
        new = out.reshape(q.shape), rounds.of_tokens(i, stats)
        return tuple(rounds.merge(i, x, old, axis) for x, old, axis in zip(new, found, (1, 2), strict=True))

    B, T, N, _ = q.shape
    return rounds.run(one_round, (jnp.zeros_like(q), jnp.full((B, N, T), jnp.inf, jnp.float32)))


def backward(q, k, v, mask: MaskSpec, segments: Segments | None, out, lse, dout) -> tuple[jax.Array, ...]:
    """Gradients of q, k and v, from what `forward` gives and the cotangent of its output. With output and logsumexp of
    more keys than `k`, those of this part of the keys."""
    if segments is None:
        return call_backward(q, k, v, out, dout, stats=lse, window=mask.window, offsets=None)
    rounds = Rounds.of(q, mask, segments)

    def one_round(i, found):
        folded, stats = [rounds.fold(x) for x in (q, k, v, out, dout)], rounds.of_pieces(i, lse)
        new = call_backward(*folded, stats=stats, window=mask.window, offsets=rounds.offsets(i, k.shape[2]))
        return tuple(rounds.merge(i, x.reshape(old.shape), old, 1) for x, old in zip(new, found, strict=True))

    return rounds.run(one_round, tuple(map(jnp.zeros_like, (q, k, v))))


class Offsets(NamedTuple):
    """Where the pieces of a call lie. M pieces for each of the call's B rows, empty ones at the end."""

    lengths: jax.Array
    """int32[B, M], tokens."""
    queries: jax.Array
    """int32[B, M + 1]: elements before each piece in q; those of the whole array after the last."""
    keys: jax.Array
    """The same in k and v, which have other strides."""


class Rounds(NamedTuple):
    """The calls that take all pieces of packed rows.

    A call's array of logsumexp is as long for each piece as a row, so rows are cut to the length of a chunk, which no
    piece exceeds. Pieces lie where they lie in memory, across such cuts too."""

    pieces: Pieces
    rows: int
    """Rows of a call."""
    capacity: int
    """Pieces of a call, a multiple of `rows`."""
    width: int
    """Elements of a token's queries."""
    head_dim: int

    @classmethod
    def of(cls, q, mask: MaskSpec, segments: Segments) -> "Rounds":
        B, T, N, H = q.shape
        cuts = T // mask.chunk if mask.chunk and T % mask.chunk == 0 else 1
        most = max(MIN_PIECES, B * T // TOKENS_PER_PIECE) + (B * -(-T // mask.chunk) if mask.chunk else 0)
        rows = B * max(cuts, 1)
        of_row = max(2, -(-most // rows))  # cuDNN takes one piece a row for rows that are not packed
        pieces = Pieces.of(segments, mask.chunk)
        return cls(pieces, rows, capacity=rows * of_row, width=N * H, head_dim=H)

    def fold(self, x):
        """[B,T,...] as rows of a call."""
        return x.reshape(self.rows, -1, *x.shape[2:])

    def offsets(self, i, kv_heads: int) -> Offsets:
        """Of call i."""
        starts, lengths = self.pieces.slots(i * self.capacity, self.capacity)
        end = jnp.full((self.rows,), self.pieces.begun.size, jnp.int32)
        places = jnp.concatenate([starts, end]).reshape(self.rows, -1)
        return Offsets(lengths.reshape(self.rows, -1), places * self.width, places * (kv_heads * self.head_dim))

    def of_tokens(self, i, stats):
        """Logsumexp [C,N,S] of call i's pieces -> [B,N,T] of the tokens; undefined where a token is in no piece."""
        piece = jnp.clip(self.pieces.index - i * self.capacity, 0, self.capacity - 1)
        place = jnp.clip(self.pieces.place, 0, stats.shape[2] - 1)
        heads = jnp.arange(stats.shape[1], dtype=jnp.int32)
        at = piece[:, None, :], heads[None, :, None], place[:, None, :]
        return stats.at[at].get(mode="promise_in_bounds")

    def of_pieces(self, i, lse):
        """The reverse: [B,N,T] -> [C,N,S], infinity after a piece's end."""
        (B, N, T), (starts, lengths) = lse.shape, self.pieces.slots(i * self.capacity, self.capacity)
        place = jnp.arange(B * T // self.rows, dtype=jnp.int32)[None, :]
        token = jnp.minimum(starts[:, None] + place, B * T - 1)
        of_tokens = lse.transpose(1, 0, 2).reshape(N, B * T)
        found = of_tokens.at[:, token].get(mode="promise_in_bounds").transpose(1, 0, 2)
        return jnp.where((place < lengths[:, None])[:, None, :], found, jnp.inf)

    def merge(self, i, new, old, axis: int):
        """`new` at the tokens of call i's pieces, `old` elsewhere. Axis 0 is that of rows, `axis` that of tokens."""
        here = self.pieces.among(i * self.capacity, self.capacity)
        shape = [n if at in (0, axis) else 1 for at, n in enumerate(new.shape)]
        return jnp.where(here.reshape(shape), new, old)

    def run(self, one_round, start):
        """All calls. The first is outside the loop, and for ordinary documents the only one."""
        first, calls = one_round(0, start), -(-self.pieces.count // self.capacity)
        with jax.named_scope(FURTHER_CALLS):
            return jax.lax.fori_loop(1, calls, one_round, first)


# ---- the primitives --------------------------------------------------------------------------------------------------


def call_forward(q, k, v, *, window: int | None, offsets: Offsets | None):
    """cuDNN's output [B,T,N,H] and logsumexp float32[B,N,T]; with `offsets` [B*M,N,T], one row for each piece, and both
    undefined outside of pieces."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    out, stats = fused._dot_product_attention_fwd_p.bind(
        *_operands(q, k, v, offsets), is_training=True, **_parameters(fused, q, window, offsets)
    )
    return out, stats


def call_backward(q, k, v, out, dout, *, stats, window: int | None, offsets: Offsets | None):
    """cuDNN's gradients of q, k and v, from what `call_forward` gives."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    return fused._dot_product_attention_bwd_p.bind(
        *_operands(q, k, v, offsets), stats, out, dout, **_parameters(fused, q, window, offsets)
    )


def _operands(q, k, v, offsets: Offsets | None) -> tuple[jax.Array, ...]:
    """Of both primitives: q, k, v, bias, lengths of queries and keys, their offsets, two tables of pages."""
    none = jnp.zeros(0, q.dtype)
    packing = (none,) * 4 if offsets is None else (offsets.lengths, offsets.lengths, offsets.queries, offsets.keys)
    return q, k, v, none, *packing, none, none


def _parameters(fused, q, window: int | None, offsets: Offsets | None) -> dict[str, Any]:
    of_newer_jax = inspect.signature(fused._dot_product_attention_fwd_cuda_lowering).parameters
    return {
        "scale": q.shape[-1] ** -0.5,
        "seed": 42,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": fused.MaskType.CAUSAL if offsets is None else fused.MaskType.PADDING_CAUSAL,
        "layout": fused.AttentionLayout.BTNH.value,
        "sliding_window_length": window,
        **{name: None for name in ("score_mod_name", "score_mod_jaxpr") if name in of_newer_jax},
    }


CUDNN = Kernel("cudnn", cudnn_attention, why_not, platforms=("gpu",))
