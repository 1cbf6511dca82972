"""A stand-in for cuDNN's attention that runs anywhere: it takes what `call_forward` and `call_backward` take and reads
and writes the same elements. What cuDNN leaves unwritten is NaN here."""

import jax
import jax.numpy as jnp

from maverick_jax.ops.attention import cudnn


def install(monkeypatch) -> None:
    monkeypatch.setattr(cudnn, "call_forward", call_forward)
    monkeypatch.setattr(cudnn, "call_backward", call_backward)


def call_forward(q, k, v, *, window, offsets):
    B, T, N, H = q.shape
    if offsets is None:
        weights, lse = _weights(q, k, window, None, None)
        return jnp.einsum("bnts,bsnh->btnh", weights.astype(v.dtype), _heads(v, N)), lse
    at = _places(q, offsets.queries, T), _places(k, offsets.keys, T)
    lengths = offsets.lengths.reshape(-1)
    queries, keys, values = _read(q, at[0]), _read(k, at[1]), _read(v, at[1])
    weights, lse = _weights(queries, keys, window, lengths, None)
    out = jnp.einsum("bnts,bsnh->btnh", weights.astype(v.dtype), _heads(values, N))
    return _write(q, at[0], lengths, out), jnp.where(_inside(T, lengths)[:, None], lse, jnp.nan)


def call_backward(q, k, v, out, dout, *, stats, window, offsets):
    T = q.shape[1]
    if offsets is None:
        return _gradients(q, k, v, out, dout, stats, window, None)
    of_queries, of_keys = _places(q, offsets.queries, T), _places(k, offsets.keys, T)
    places, lengths = (of_queries, of_keys, of_keys, of_queries, of_queries), offsets.lengths.reshape(-1)
    read = [_read(x, place) for x, place in zip((q, k, v, out, dout), places, strict=True)]
    grads = _gradients(*read, stats, window, lengths)
    return [_write(x, place, lengths, g) for x, place, g in zip((q, k, v), places[:3], grads, strict=True)]


def _gradients(q, k, v, out, dout, stats, window, lengths):
    (N, H), K = q.shape[2:], k.shape[2]
    weights, _ = _weights(q, k, window, lengths, stats)
    dout = dout.astype(jnp.float32)
    by_kv = lambda x: x.reshape(*x.shape[:2], K, N // K, H).sum(3)
    dv = by_kv(jnp.einsum("bnts,btnh->bsnh", weights, dout))
    dweights = jnp.einsum("btnh,bsnh->bnts", dout, _heads(v, N).astype(jnp.float32))
    delta = jnp.einsum("btnh,btnh->bnt", out.astype(jnp.float32), dout)[..., None]
    dscores = jnp.where(weights > 0, weights * (dweights - delta), 0) * H**-0.5
    dq = jnp.einsum("bnts,bsnh->btnh", dscores, _heads(k, N).astype(jnp.float32))
    dk = by_kv(jnp.einsum("bnts,btnh->bsnh", dscores, q.astype(jnp.float32)))
    return [g.astype(x.dtype) for g, x in ((dq, q), (dk, k), (dv, v))]


def _weights(q, k, window, lengths, stats):
    """Of [C,S,...] pieces: weights [C,N,S,S], and logsumexp [C,N,S] if `stats` does not give it."""
    (_, S, N, H), index = q.shape, jnp.arange(q.shape[1])
    scores = jnp.einsum("btnh,bsnh->bnts", q, _heads(k, N), preferred_element_type=jnp.float32) * H**-0.5
    seen = (index[None, :] <= index[:, None])[None]
    if window is not None:
        seen &= (index[:, None] - index[None, :] < window)[None]
    if lengths is not None:
        inside = _inside(S, lengths)
        seen = seen & inside[:, :, None] & inside[:, None, :]
    scores = jnp.where(seen[:, None], scores, -jnp.inf)
    lse = jax.nn.logsumexp(scores, axis=-1) if stats is None else stats
    return jnp.where(seen[:, None], jnp.exp(scores - lse[..., None]), 0), lse


def _heads(x, N):
    return jnp.repeat(x, N // x.shape[2], axis=2)


def _places(x, offsets, S):
    """The tokens of each piece in the rows of x end to end, [C, S], from offsets in elements. XLA reads the first
    C + 1 offsets."""
    width = x.shape[2] * x.shape[3]
    flat = offsets.reshape(-1)[: offsets.size - offsets.shape[0]]
    return flat[:, None] // width + jnp.where((flat % width)[:, None] == 0, jnp.arange(S)[None], x.size)


def _inside(S, lengths):
    return jnp.arange(S)[None, :] < lengths[:, None]


def _read(x, at):
    """[C,S,...]: 0 beyond the array."""
    return x.reshape(-1, *x.shape[2:]).at[at].get(mode="fill", fill_value=0)


def _write(x, at, lengths, pieces):
    flat = jnp.full((x.shape[0] * x.shape[1], *x.shape[2:]), jnp.nan, x.dtype)
    here = jnp.where(_inside(at.shape[1], lengths), at, flat.shape[0])
    return flat.at[here].set(pieces, mode="drop").reshape(x.shape)
