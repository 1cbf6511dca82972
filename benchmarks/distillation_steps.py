"""The steps that `distillation.py` compares: pretraining, online and offline distillation, and the teacher alone."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.ours import fresh, host_batch, model_config, parts, place
from benchmarks.shapes import SHAPES, Shape
from maverick_jax.model.transformer import Maverick
from maverick_jax.precision import for_platform
from maverick_jax.sharding import ShardingRules
from train.objectives import Distill, Pretrain
from train.objectives.base import Objective
from train.objectives.distill.stored import PREFIX
from train.step import compile_step, eval_step

TEACHER = dataclasses.replace(
    SHAPES["tiny"], hidden_size=384, num_hidden_layers=8, num_local_experts=16, intermediate_size=768
)
"""The teacher's shape, with the batch and vocabulary of the student (`tiny`) and experts in every other layer."""
TOP_K = 64


class Steps:
    """Compiled programs, each with its own state: pretrain, online, offline, teacher."""

    def __init__(self, shape: Shape, teacher: Shape, wanted: Sequence[str]):
        self._batch = place(host_batch(shape))
        self._states: dict[str, Any] = {}
        self._programs: dict[str, Any] = {}
        self._references = {} if tuple(wanted) == ("pretrain",) else {"teacher": _frozen(teacher)}
        self.teacher_bytes = sum(x.nbytes for x in jax.tree.leaves(self._references))
        config = for_platform(model_config(shape))
        for name in wanted:
            if name == "teacher":
                continue
            objective, references = self._objective(name)
            batch = self._batch | (offline_fields(shape) if name == "offline" else {})
            optimizer = parts(config, packed=True)["optimizer"]
            state = fresh(config, {"optimizer": optimizer, "objective": objective})
            program = compile_step(state, batch, objective, optimizer, references)
            self._states[name], self._programs[name] = state, functools.partial(_with_batch, program, batch)
        self._forward = jax.jit(functools.partial(eval_step, objective=Pretrain()))

    def _objective(self, name: str) -> tuple[Objective, dict[str, Maverick]]:
        if name == "pretrain":
            return Pretrain(), {}
        if name == "online":
            return Distill(teacher="-"), self._references
        return Distill(targets={"path": "-", "top_k": TOP_K}), {}

    def loss(self, name: str) -> float:
        """Run a step of the program `name` and wait for it; returns its loss."""
        if name == "teacher":
            sums = self._forward(self._references["teacher"], self._batch, Pretrain().first_context({}))
            return float(sums["loss"] / sums["weight"])
        self._states[name], metrics = self._programs[name](self._states[name])
        return float(jax.block_until_ready((self._states[name], metrics))[1]["loss"])


def _with_batch(program, batch, state):
    return program(state, batch)


def _frozen(shape: Shape) -> Maverick:
    config = for_platform(model_config(shape))
    return jax.jit(lambda: Maverick(config, ShardingRules(), rngs=nnx.Rngs(1)))()


def offline_fields(shape: Shape) -> dict[str, jax.Array]:
    """Random fields of an offline teacher for a batch; the time of a step does not depend on the values."""
    rng, rows = np.random.default_rng(1), (1, shape.batch_size, shape.sequence_length)
    first = rng.integers(0, shape.vocab_size, (*rows, 1))
    values = np.sort(rng.exponential(3.0, (*rows, TOP_K)).astype(np.float32), axis=-1)
    fields = {
        "ids": ((first + np.arange(TOP_K)) % shape.vocab_size).astype(np.uint16),  # all different
        "log_probs": (-values - 1).astype(np.float16),
        "log_tail": np.full(rows, -3.0, np.float32),
        "label_log_prob": np.full(rows, -4.0, np.float32),
        "entropy": np.full(rows, 3.0, np.float32),
    }
    return place({PREFIX + name: value for name, value in fields.items()})
