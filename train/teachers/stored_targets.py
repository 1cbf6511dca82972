"""The targets a run learns from, checked against the run before anything is compiled, and joined to its rows."""

import dataclasses
import pathlib

import numpy as np

from data.rows.dataset import Dataset
from data.targets.format import Row, Targets, how_to_go_on
from maverick_jax.errors import InputError
from maverick_jax.pretrained import open_source
from train.config import RunConfig
from train.objectives import Distill
from train.objectives.distill.stored import PREFIX

CHECKED_ROWS = 16


@dataclasses.dataclass(frozen=True)
class TargetsOf:
    """(number, row) -> the row's targets, as fields of a batch. Travels to worker processes as a path."""

    targets: Targets
    fields: tuple[str, ...]

    def __call__(self, index: int, row: Row) -> Row:
        arrays = self.targets.row(index, row)
        return {PREFIX + name: arrays[name] for name in self.fields}


def open_targets(config: RunConfig, data: Dataset) -> Targets:
    """The folder at `objective.targets`. Raises InputError, with one line per difference, unless it is complete and its
    targets are of this run's settings, tokenizer and data: first, last and some rows between are compared here, every
    row again when it is read."""
    objective = config.objective
    assert isinstance(objective, Distill) and objective.targets is not None
    wanted, targets = objective.targets, Targets.open(pathlib.Path(objective.targets.path).expanduser())
    header, rows = targets.header, config.run.steps * config.data.batch_size
    differences = {
        "model.vocab_size": (header.vocab_size, config.model.vocab_size),
        "objective.temperature": (header.temperature, objective.divergence.temperature),
        "objective.targets.top_k": (header.top_k, wanted.top_k),
        "objective.targets.tail_samples": (header.tail_samples, wanted.tail_samples),
        "objective.targets.dtype": (header.dtype, wanted.dtype),
        "data.sequence_length": (header.sequence_length, config.data.sequence_length),
    }
    lines = [f"{key}: {there} there, {here} here" for key, (there, here) in differences.items() if there != here]
    if header.tokenizer != data.tokenizer.fingerprint:
        lines.append(f"data.tokenizer: made with another tokenizer than {data.tokenizer.name}")
    if header.rows < rows:
        needed = f"{config.run.steps:,} batches of {config.data.batch_size} need {rows:,} rows"
        lines.append(f"run.steps: {needed}; {header.rows:,} there")
    if objective.teacher is not None and open_source(objective.teacher).fingerprint() != header.teacher:
        lines.append(f"objective.teacher: made by another model than {objective.teacher}")
    if lines:
        why = f"{targets.path} holds targets that this run cannot learn from:"
        anew = f"change the config, or make targets for it in another folder with {how_to_go_on('DIR')}"
        raise InputError("\n".join([why, *(f"  {line}" for line in lines), anew]))
    for index in np.unique(np.linspace(0, rows - 1, min(rows, CHECKED_ROWS)).astype(int)).tolist():
        targets.row(index, data.row(index))
    return targets
