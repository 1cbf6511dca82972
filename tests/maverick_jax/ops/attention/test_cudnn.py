"""cuDNN attention up to the kernel: what it is given, where it is refused, and how often a step runs it."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused

from maverick_jax.ops.attention import cudnn
from maverick_jax.ops.attention.cudnn import Rounds, cudnn_attention, why_not
from maverick_jax.ops.attention.spec import AttentionCase, MaskSpec
from maverick_jax.saved import ATTENTION
from tests.maverick_jax.ops.attention.test_pieces import rows_of, twin

CASE = AttentionCase(MaskSpec("chunked", 8192), True, 4, 8192, 40, 8, 128, "bfloat16")


@pytest.mark.parametrize("chunk", [None, 4, 5])
@pytest.mark.parametrize("of_row", [[3, 1, 8, 4], [-2, 14], [1] * 16, [-16]], ids=str)
def test_offsets_of_every_piece_in_elements(of_row, chunk):
    """Each array is addressed by its own strides, over all calls that the pieces take; grouped queries."""
    N, K, H = 6, 2, 8
    segments = rows_of([of_row, [16], of_row[::-1]], 16)
    rounds = Rounds.of(jnp.zeros((3, 16, N, H)), MaskSpec("chunked", chunk), segments)
    expected = twin(segments, chunk)
    for call in range(-(-len(expected) // rounds.capacity)):
        lengths, queries, keys = rounds.offsets(call, K)
        assert queries.shape == keys.shape == (rounds.rows, rounds.capacity // rounds.rows + 1)
        here = expected[call * rounds.capacity : (call + 1) * rounds.capacity]
        more = len(expected[(call + 1) * rounds.capacity :])
        unused = rounds.capacity - len(here)
        assert lengths.reshape(-1).tolist() == [length for _, length in here] + [0] * unused
        starts = [start for start, _ in here]
        for offsets, heads in ((queries, N), (keys, K)):
            found, width = offsets.reshape(-1), heads * H
            assert found[: len(here)].tolist() == [start * width for start in starts]
            assert more or found[len(here) :].tolist() == [48 * width] * (unused + rounds.rows)


@pytest.mark.parametrize(
    ("changes", "capability", "said"),
    [
        ({}, (9, 0), None),
        ({"mask": MaskSpec("sliding_window", 64)}, (10, 0), None),
        ({"dtype": "float32"}, (9, 0), "takes bfloat16 and float16, not float32"),
        ({}, (8, 0), "compute capability 9.0"),
        ({}, None, "compute capability 9.0"),
        ({"head_dim": 20}, (9, 0), "multiples of 8, not 20"),
        ({"head_dim": 264}, (9, 0), "up to 256"),
        ({"heads": 12}, (9, 0), "takes a multiple of 8 query heads, not 12"),
        ({"length": 2**20}, (9, 0), "offsets of packed rows reach 2^31"),
        ({"length": 2**20, "packed": False}, (9, 0), None),
    ],
)
def test_reasons_why_not(changes, capability, said, monkeypatch):
    monkeypatch.setattr(cudnn, "traced_capability", lambda: capability)
    monkeypatch.setattr(cudnn, "missing", lambda: None)
    reason = why_not(dataclasses.replace(CASE, **changes))
    assert reason is None if said is None else said in (reason or "")


def test_an_installation_without_cudnn_is_a_reason(monkeypatch):
    from jax._src import lib

    monkeypatch.setattr(lib, "cuda_versions", None)
    monkeypatch.setattr(cudnn, "traced_capability", lambda: (9, 0))
    assert "not installed" in (why_not(CASE) or "")


def test_the_primitives_get_every_parameter_of_this_jax():
    """Their operands and parameters are private to JAX and differ between its versions."""
    given = cudnn._parameters(fused, jnp.zeros((1, 8, 2, 8)), None, None)
    for lowering, more in ((fused._dot_product_attention_fwd_cuda_lowering, {"is_training"}),
                           (fused._dot_product_attention_bwd_cuda_lowering, set())):  # fmt: skip
        taken = [p.name for p in inspect.signature(lowering).parameters.values() if p.kind is not p.VAR_POSITIONAL]
        assert set(taken[taken.index("scale") :]) == given.keys() | more
        assert taken[1 : taken.index("scale")][:10] == [
            *("query", "key", "value", "bias", "q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets"),
            *("page_table_k", "page_table_v"),
        ]


def calls(f, *args) -> dict[str, int]:
    """Calls of cuDNN in the program of f for an NVIDIA GPU, which need not be at hand."""
    text = jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    found = re.findall(r"@__cudnn\$fmhaSoftmax(Backward)?\(", text)
    return {"forward": found.count(""), "backward": found.count("Backward")}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("names", "forward"), [((ATTENTION,), 1), ((), 2)])
def test_attention_runs_forward_once_if_its_results_are_kept(names, forward, packed):
    """Packed rows have each call twice in their program, once in a loop that takes further pieces."""
    segments = rows_of([[100, 156]], 256) if packed else None
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    layer = jax.checkpoint(lambda q, k, v: cudnn_attention(jnp.sin(q), k, v, MaskSpec(), segments), policy=policy)
    loss = lambda q, k, v: jnp.sum(layer(q, k, v).astype(jnp.float32) ** 2)
    q, k = (jnp.ones((1, 256, heads, 8), jnp.bfloat16) for heads in (4, 2))
    twice = 1 + packed
    assert calls(jax.grad(loss, (0, 1, 2)), q, k, k) == {"forward": forward * twice, "backward": twice}


def test_what_is_kept_does_not_grow_with_the_number_of_pieces():
    """Output and logsumexp of the tokens, whatever the size of cuDNN's own logsumexp."""
    segments, q = rows_of([[64] * 64], 4096), jnp.zeros((1, 4096, 4, 8), jnp.bfloat16)
    out, lse = jax.eval_shape(lambda q: cudnn.forward(q, q, q, MaskSpec(), segments), q)
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, (1, 4, 4096), np.float32)
