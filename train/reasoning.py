"""What latents, reasoning heads and repeated periods need of a run: marks in its rows, room for them, no pipeline."""

from collections.abc import Iterable

import numpy as np

from data.config import DataConfig
from data.rows.dataset import Dataset
from data.rows.fields import FIELDS, MARKS, Row
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.reasoning import HeadGroup, ReasoningHeads
from train.objectives.base import Objective


def with_marks(models: Iterable[ModelConfig], fields: Iterable[str]) -> tuple[str, ...]:
    """The fields that a step reads: those of its objective, and marks if one of its models has heads for them."""
    return (*fields, MARKS) if any(model.reasoning_heads for model in models) else tuple(fields)


def reasoning_misfits(model: ModelConfig, data: DataConfig, objective: Objective, stages: int) -> list[tuple[str, str]]:
    """(key, error) where a run of `stages` pipeline stages cannot train the model's latents, heads and loops."""
    if model.latent is not None and stages > 1:
        said = f"latent thoughts are not computed with mesh.pipeline={stages}; expected mesh.pipeline=1"
        return [("model.latent", said)]
    if model.loops is not None and stages > 1:
        return [("model.loops", f"periods lie on {stages} pipeline stages and cannot repeat; expected null, or "
                 "mesh.pipeline=1")]  # fmt: skip
    return [("model.reasoning_heads", why) for why in unmarked(model, data, objective)]


def unmarked(model: ModelConfig, data: DataConfig, objective: Objective) -> list[str]:
    """Why the rows of a run have no marks for the heads of a model that reads them; empty if they have, or if the model
    has no heads."""
    if model.reasoning_heads is None:
        return []
    if objective.batch_maker() is not None or "rollouts" in _sources(objective):
        return [f"objective.kind: {objective.kind} makes its rows itself, without marks; expected null"]
    if not (data.has_kinds or data.has_preferences):
        return ["no source of data has token kinds, so nothing is marked; expected null, or a source of trajectories, "
                "pictures or preferences"]  # fmt: skip
    return []


def _sources(objective: Objective) -> set[str]:
    return {FIELDS[name].source for name in objective.fields()}


def check_room(data: Dataset, heads: ReasoningHeads | None, key: str = "model") -> None:
    """Raises InputError if a row of an epoch of `data` has more marked tokens than the heads of the model at `key` have
    room for. Rows are counted from their plans; nothing is counted where whole rows have room."""
    for group in heads.groups if heads else ():
        for source in data.sources if group.tokens < data.config.sequence_length else ():
            _require_room(group, source.most_marked(group.mark), f"a row of data.sources.{source.name}", key)


def check_marks(rows: Row, heads: ReasoningHeads | None, key: str = "model") -> None:
    """As `check_room`, of the rows [n, T] of a batch."""
    for group in heads.groups if heads else ():
        counts = np.count_nonzero(rows[MARKS] == group.mark, axis=-1)
        _require_room(group, int(counts.max(initial=0)), "a row of a batch", key)


def _require_room(group: HeadGroup, most: int, where: str, key: str) -> None:
    if most > group.tokens:
        raise InputError(
            f"{key}.reasoning_heads.{group.name}_tokens: {group.tokens}; {where} has {most} tokens that "
            f"{group.name} heads see. Expected at least as many, or a shorter data.sequence_length"
        )
