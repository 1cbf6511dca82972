"""Attention to marked tokens equals its twin, in value and gradient, and tokens beyond the capacity are not seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops.marked import attention_to_marked, attention_to_marked_reference, marked
from maverick_jax.row_split import RowSplit
from tests.helpers.tiny import RULES

B, T, S, H, C = 4, 32, 2, 4, 12


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Segments of many lengths with padding between and after them, and marks: many, one, none, and on the last place
    of a segment."""
    short = np.repeat(np.arange(1, 17), 2).tolist()
    ids = np.array([[1] * 9 + [2] * 11 + [0] * 2 + [3] * 8 + [0] * 2, [1] * 32, [1] * 30 + [0] * 2, short])
    rng = np.random.default_rng(0)
    marks = (rng.random((B, T)) < 0.25) & (ids > 0)
    marks[0, 8], marks[1, 1:], marks[2] = True, False, False
    marks[1, 0] = True
    assert marks.sum(axis=1).max() <= C
    return ids.astype(np.int32), marks


def arrays():
    rng = np.random.default_rng(1)
    return [rng.normal(size=(B, T, n, H)).astype(np.float32) for n in (S, 1, 1, S)]


def computed(sizes: dict[str, int], mesh_of):
    """The output and the gradients of q, k and v, in the order of rows; of real tokens."""
    (ids, marks), (q, k, v, dout) = rows(), arrays()
    dout = np.where(ids[..., None, None] > 0, dout, 0)
    with mesh_of(**sizes):
        split = RowSplit.of(T, RULES, jax.sharding.get_mesh().shape)
        heads, kv, token = (RULES("batch", "length", *rest) for rest in (("heads", None), (None, None), ()))
        place = lambda x, spec: jax.device_put(split.split(x, 1), spec)

        @jax.jit
        def both(q, k, v, ids, marks, dout):
            where = marked(marks, ids, C, RULES)
            out, vjp = jax.vjp(lambda *qkv: attention_to_marked(*qkv, where, RULES), q, k, v)
            return out, vjp(dout)

        found = both(place(q, heads), place(k, kv), place(v, kv), place(ids, token), place(marks, token),
                     place(dout, heads))  # fmt: skip
        out, gradients = jax.tree.map(lambda x: split.whole(np.asarray(x), 1), found)
    return np.where(ids[..., None, None] > 0, out, 0), gradients


def expected():
    (ids, marks), (q, k, v, dout) = rows(), arrays()
    twin = lambda *qkv: attention_to_marked_reference(*qkv, jnp.asarray(marks), jnp.asarray(ids))
    out, vjp = jax.vjp(twin, q, k, v)
    return out, vjp(jnp.where(ids[..., None, None] > 0, dout, 0))


MESHES = [
    {"data": 1},
    {"fsdp": 2, "context": 2, "tensor": 2},
    pytest.param({"context": 4}, marks=pytest.mark.slow),
    pytest.param({"expert": 4, "tensor": 2}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("sizes", MESHES)
def test_it_is_its_twin(sizes, mesh_of):
    for found, wanted in zip(jax.tree.leaves(computed(sizes, mesh_of)), jax.tree.leaves(expected()), strict=True):
        np.testing.assert_allclose(found, wanted, atol=5e-6, rtol=0)  # float32 sums of up to 32 terms


def test_a_token_that_sees_no_mark_gets_zeros(mesh_of):
    ids, _ = rows()
    out, _ = computed({"data": 1}, mesh_of)
    assert not out[2].any()
    assert out[1][ids[1] > 0].any(axis=(1, 2)).all()


def test_marked_tokens_beyond_the_capacity_have_no_slot(mesh_of):
    with mesh_of(data=1):
        where = marked(jnp.ones((1, 5), bool), jnp.ones((1, 5), jnp.int32), 3, RULES)
    assert where.slot.tolist() == [[0, 1, 2, 3, 3]]
    assert where.keys.segment_ids.tolist() == [[1, 1, 1]]
