"""A teacher's forward pass: its most likely tokens at every position, and samples of the others."""

import functools
from collections.abc import Callable

import jax
from jax.sharding import reshard

from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.top_k import TopTokens, top_k
from maverick_jax.sharding import ShardingRules
from train.objectives.distill.stored import OfflineTargets

TeacherForward = Callable[[dict[str, jax.Array], jax.Array], TopTokens]
"""(batch [A, b, T], uniforms [A, b, T, s]) -> the teacher's answers, [A, b, T, ...]."""


def teacher_forward(
    teacher: Maverick, wanted: OfflineTargets, temperature: float, rules: ShardingRules
) -> TeacherForward:
    """The jitted forward pass of a frozen teacher. rules: the sharding rules of the batches; the teacher's parameters
    may use others."""
    options = {"k": wanted.top_k, "temperature": temperature, "rules": rules}
    return functools.partial(jax.jit(functools.partial(teacher_top_k, **options)), teacher)


def teacher_top_k(
    teacher: Maverick,
    batch: dict[str, jax.Array],
    uniforms: jax.Array,
    *,
    k: int,
    temperature: float,
    rules: ShardingRules,
) -> TopTokens:
    """The `k` most likely tokens at each position of a batch [A, b, T], and s samples of the others, drawn with
    `uniforms` float32[A, b, T, s] in [0, 1); see `top_k`. It runs one microbatch at a time."""

    def one(microbatch):
        batch, uniforms = microbatch
        hidden = reshard(teacher.hidden(Inputs.of(batch))[0], rules("batch", "length", None))
        head = reshard(teacher.output_weight(), rules.compute("embed", "vocab"))
        return top_k(hidden, head, batch["labels"], uniforms, k=k, temperature=temperature, rules=rules)

    return jax.lax.map(one, (batch, uniforms))
