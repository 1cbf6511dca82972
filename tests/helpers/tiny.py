"""The smallest model and run with all features: two layers of each kind, experts, chunks, packed documents."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from data.rows.fields import FIELDS
from maverick_jax.checkpoint import names
from maverick_jax.config import ModelConfig
from maverick_jax.model.transformer import Maverick
from maverick_jax.network import Balance
from maverick_jax.row_split import RowSplit
from maverick_jax.sharding import ShardingRules, single_device_mesh
from train.objectives import Pretrain
from train.objectives.base import Objective
from train.optimizers import AdamW, OptimizerConfig
from train.state import init_state
from train.step import train_step
from train.trainable.config import TrainableConfig

RULES = ShardingRules()
OPTIMIZER = AdamW(learning_rate=3e-3, warmup_steps=2, schedule="constant")
TRAINABLE = TrainableConfig()
STEPS = 10
PRETRAIN = Pretrain()


def model_config(**changes) -> ModelConfig:
    base = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "intermediate_size": 16,
        "intermediate_size_mlp": 32,
        "num_local_experts": 8,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 8,
        "floor_scale": 8,
        "compute_dtype": "float32",
        "remat": "none",
        "balance": Balance(weight=0.02, z_loss=0.002),
    }
    return ModelConfig(**(base | changes))


def batch(
    config: ModelConfig,
    step: int = 0,
    *,
    rows: int = 8,
    length: int = 24,
    microbatches: int = 1,
    cell: int | None = None,
) -> dict:
    """A batch of NumPy arrays [A, rows/A, length]. Each row has two documents of different lengths, and padding.
    `cell`: the second document is cut at the next border of a cell, as `data.cell` has it."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, config.vocab_size, (rows, length + 1)).astype(np.int32)
    border = rng.integers(3, length - 4, (rows, 1))
    index = np.arange(length)
    segment = 1 + (index[None, :] >= border)
    positions = np.where(segment == 1, index[None, :], index[None, :] - border)
    if cell is not None:
        second = -(-border // cell) * cell
        segment = segment + ((index[None, :] >= second) & (second > border))
        positions = np.where(segment == 3, index[None, :] - second, positions)
    segment = np.where(index[None, :] >= length - 2, 0, segment)
    last = np.concatenate([np.diff(segment, axis=1) != 0, np.ones((rows, 1), bool)], axis=1)
    fields = {
        "tokens": tokens[:, :-1],
        "labels": tokens[:, 1:],
        "positions": positions.astype(np.int32),
        "segment_ids": segment.astype(np.int32),
        "loss_weights": ((segment > 0) & ~last).astype(np.float32),
    }
    return {name: x.reshape(microbatches, rows // microbatches, length) for name, x in fields.items()}


def placed(arrays: dict) -> dict:
    """The arrays [A, b, T] on the mesh in use, as the batches of a run are."""
    spec = lambda name: PartitionSpec(None, *RULES(*FIELDS[name].axes))
    split = RowSplit.of(arrays["tokens"].shape[2], RULES, jax.sharding.get_mesh().shape)
    ordered = lambda name, x: split.split(x, 2) if "length" in FIELDS[name].axes else x
    return {name: jax.device_put(ordered(name, x), spec(name)) for name, x in arrays.items()}


def jitted(
    config: ModelConfig,
    optimizer: OptimizerConfig = OPTIMIZER,
    objective: Objective = PRETRAIN,
    trainable: TrainableConfig = TRAINABLE,
):
    """(init, step), compiled as in a run."""
    tx = optimizer.build(STEPS, config, trainable.selection())
    init = jax.jit(functools.partial(init_state, config=config, rules=RULES, optimizer=tx, objective=objective))
    step = functools.partial(train_step, references={}, objective=objective, optimizer=tx)
    return init, jax.jit(step, donate_argnums=0)


@functools.cache
def model_of(config: ModelConfig, seed: int) -> Maverick:
    """A fresh model on one device."""
    with jax.set_mesh(single_device_mesh()):
        return jax.jit(lambda: Maverick(config, RULES, rngs=nnx.Rngs(seed)))()


def on_mesh(model: Maverick) -> Maverick:
    """The model on the mesh in use."""
    like = jax.eval_shape(lambda: Maverick(model.config, RULES, rngs=nnx.Rngs(0)))
    mesh = jax.sharding.get_mesh()
    place = lambda x, to: jax.device_put(np.asarray(x), jax.NamedSharding(mesh, to.sharding.spec))
    return jax.tree.map(place, model, like)


def check_same_of_pairs(one, other, metrics: Sequence[str], tolerance: float) -> None:
    """Checks that two results (sums, gradients, metrics) of an objective of pairs are equal: gradients to a fraction of
    the largest element of their array."""
    np.testing.assert_allclose(one[0]["total"], other[0]["total"], rtol=tolerance, atol=tolerance)
    found, expected = (names.flatten(found[1]) for found in (one, other))
    for name, x in expected.items():
        scale = max(np.abs(x).max(), 1e-3)
        np.testing.assert_allclose(found[name], x, rtol=0, atol=10 * tolerance * scale, err_msg=name)
    for name in metrics:
        np.testing.assert_allclose(one[2][name], other[2][name], rtol=1e-5, atol=1e-5, err_msg=name)
