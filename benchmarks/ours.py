"""Our train step as a worker, and parts of it for other benchmarks."""

import argparse
import resource
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import B1, B2, CLIP_NORM, LEARNING_RATE, SHAPES, WEIGHT_DECAY, Shape
from benchmarks.worker import serve
from maverick_jax.accounting.flops import train_flops_per_token
from maverick_jax.config import ModelConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.precision import for_platform
from maverick_jax.sharding import ShardingRules
from train.objectives.pretrain import Pretrain
from train.optimizers import AdamW
from train.state import TrainState, fresh_state
from train.step import compile_step

TOTAL_STEPS = 1000
MATRIX_SIZE = 4096


class WholeRows(Pretrain):
    """Pretraining on rows with a single document each, without segments, as the peers train."""

    def loss(self, model, batch, totals, context):
        whole_rows = types.SimpleNamespace(
            config=model.config,
            rules=model.rules,
            output_weight=model.output_weight,
            stored_output_weight=model.stored_output_weight,
            hidden=lambda inputs: model.hidden(Inputs(inputs.tokens)),
        )
        return super().loss(whole_rows, batch, totals, context)


def model_config(shape: Shape, *, dtype: str = "float32", remat: str = "none") -> ModelConfig:
    return ModelConfig(**shape.model_fields(), compute_dtype=dtype, remat=remat)


def parts(config: ModelConfig, *, packed: bool = False) -> dict[str, Any]:
    """The arguments of `train.step.compile_step` besides state and batch."""
    optimizer = AdamW(learning_rate=LEARNING_RATE, b1=B1, b2=B2, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM)
    return {
        "objective": Pretrain() if packed else WholeRows(),
        "optimizer": optimizer.build(TOTAL_STEPS, config),
        "references": {},
    }


def fresh(config: ModelConfig, parts: dict[str, Any]) -> TrainState:
    """The state before the first step, made by the code of a training run."""
    return fresh_state(0, config, ShardingRules(), optimizer=parts["optimizer"], objective=parts["objective"])


def host_batch(shape: Shape) -> dict[str, np.ndarray]:
    """The batch of the train step, with one microbatch and one document per row: arrays [1, batch, sequence]."""
    tokens = shape.random_tokens().astype(np.int32)[None]
    ones = np.ones_like(tokens[..., 1:])
    return {
        "tokens": tokens[..., :-1],
        "labels": tokens[..., 1:],
        "positions": ones * np.arange(shape.sequence_length, dtype=np.int32),
        "segment_ids": ones,
        "loss_weights": ones.astype(np.float32),
    }


def place(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The batch on the current mesh, with the shardings of the train step."""
    spec = jax.sharding.PartitionSpec(None, *ShardingRules()("batch", "length"))
    return {key: jax.device_put(value, spec) for key, value in batch.items()}


def matrix_rate(size: int = MATRIX_SIZE, times: int = 3) -> float:
    """FLOP/s of the fastest of several float32 products of two square matrices."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    return 2 * size**3 / min(seconds_of(lambda: product(a)) for _ in range(times))


def seconds_of(call) -> float:
    """Wall time of a call until its results are ready."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


class OurTrainStep:
    """Our compiled train step with its state, after one step."""

    def __init__(self, shape: Shape, *, dtype: str, remat: str, packed: bool):
        config = for_platform(model_config(shape, dtype=dtype, remat=remat))
        self._batch = place(host_batch(shape))
        step_parts = parts(config, packed=packed)
        self._state = fresh(config, step_parts)
        began = time.perf_counter()
        self._step = compile_step(self._state, self._batch, **step_parts)
        self.facts: dict[str, Any] = {"compile_seconds": time.perf_counter() - began}
        loss = self.step()["loss"]
        self.facts |= {
            "first_step_cpu_seconds": time.process_time(),  # since the start of the process
            "first_loss": loss,
            "num_parameters": sum(x.size for x in jax.tree.leaves(self._state.model)),
            "flops": train_flops_per_token(config, shape.sequence_length) * shape.tokens,
            "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
        }

    def step(self) -> dict[str, float]:
        """Run a step; returns its wall and CPU time, the loss before it, and the peak memory of the process."""
        cpu, began = time.process_time(), time.perf_counter()
        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, metrics))
        return {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "loss": float(metrics["loss"]),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def _start(args: argparse.Namespace):
    measured = OurTrainStep(SHAPES[args.shape], dtype=args.dtype, remat=args.remat, packed=args.packed)
    return measured.facts, {"step": measured.step, "matrix_rate": lambda: {"flops_per_second": matrix_rate()}}


def main() -> None:
    from maverick_jax.sharding import make_mesh

    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--packed", action="store_true")
    args = parser.parse_args()
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        serve(lambda: _start(args))


if __name__ == "__main__":
    main()
