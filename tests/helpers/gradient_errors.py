"""How far gradients of bfloat16 compute are from those of float32 compute, on real text. The table of
docs/results/precision.md: `python -m tests.helpers.gradient_errors`.

Runs replace bfloat16 by float32 on many CPUs; a model that is built by itself computes as its config says: products of
bfloat16 numbers with float32 sums, and every other sum in the dtype that the program gives it.
"""

import contextlib
import lzma
import os
import pathlib
import sys
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.rows.fields import FIELDS
from maverick_jax.checkpoint import names
from maverick_jax.config import ModelConfig
from maverick_jax.model.moe import Moe
from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import ShardingRules, single_device_mesh
from train.objectives import Pretrain
from train.objectives.base import Context

TEXT = pathlib.Path(__file__).parents[1] / "assets" / "gsm8k_train_1000.jsonl.xz"
LENGTH = 512
"""Tokens of a row."""
DENSE = ModelConfig(
    vocab_size=256,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=64,
    intermediate_size_mlp=128,
    no_rope_layer_interval=2,
    attention_chunk_size=128,
    floor_scale=64,
    initializer_range=0.05,
    remat="none",
)
MIXTURE = DENSE.model_copy(update={"num_local_experts": 2, "interleave_moe_layer_step": 2})
"""Its second layer is a mixture of experts."""
TITLES = {"dense": (DENSE, False), "mixture": (MIXTURE, False), "mixture, same routing": (MIXTURE, True)}


def errors(config: ModelConfig, tokens: int, *, same_routing: bool = False) -> dict[str, float]:
    """|bfloat16 - float32| / |float32| of the gradient of the mean loss of `tokens` tokens of text, by parameter.
    `same_routing`: experts are chosen by position and not by the router, so that no token is routed otherwise."""
    chosen = mock.patch.object(Moe, "choose", _by_position) if same_routing else contextlib.nullcontext()
    with chosen, jax.set_mesh(single_device_mesh()):
        half, full = (
            _gradient(config.model_copy(update={"compute_dtype": d}), tokens) for d in ("bfloat16", "float32")
        )
    return {name: float(np.linalg.norm(half[name] - x) / np.linalg.norm(x)) for name, x in full.items()}


def _gradient(config: ModelConfig, tokens: int) -> dict[str, np.ndarray]:
    rules, objective = ShardingRules(), Pretrain()
    rows = {name: jax.device_put(x, rules(*FIELDS[name].axes)) for name, x in batch(tokens).items()}
    totals = objective.totals({name: x[None] for name, x in rows.items()})
    context = Context(jnp.zeros((), jnp.int32), {}, {})
    model = jax.jit(lambda: Maverick(config, rules, rngs=nnx.Rngs(params=jax.random.key(0))))()
    grads = jax.jit(jax.grad(lambda model: objective.loss(model, rows, totals, context)[0]))(model)
    return {name: np.asarray(x, np.float64) for name, x in names.flatten(grads).items()}


def _by_position(moe: Moe, logits: jax.Array) -> list[jax.Array]:
    """The experts in turn: int32[B, T]."""
    index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1, out_sharding=jax.typeof(logits).sharding)
    return [index[..., 0] % moe.config.num_local_experts]


def batch(tokens: int) -> dict[str, np.ndarray]:
    """`tokens` bytes of English text, in rows of `LENGTH` [B, T], one segment each."""
    ids = np.frombuffer(lzma.decompress(TEXT.read_bytes()), np.uint8)[: tokens + 1].astype(np.int32)
    ones = np.ones(tokens, np.int32)
    fields = {
        "tokens": ids[:-1],
        "labels": ids[1:],
        "positions": np.arange(tokens, dtype=np.int32) % LENGTH,
        "segment_ids": ones,
        "loss_weights": ones.astype(np.float32),
    }
    return {name: x.reshape(-1, LENGTH) for name, x in fields.items()}


if __name__ == "__main__":
    sizes = [int(n) for n in sys.argv[1:]] or [4096, 16384]
    for title, (config, same_routing) in TITLES.items():
        found = [errors(config, n, same_routing=same_routing) for n in sizes]
        print(f"\n| {title} |", " | ".join(f"{n:,} tokens" for n in sizes), "|\n|---|" + "---:|" * len(sizes))
        for name in found[0]:
            print(f"| `{name}` |", " | ".join(f"{100 * e[name]:.2f}%" for e in found), "|", flush=True)
