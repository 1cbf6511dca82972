"""Stored targets of training rows: they are checked against the run before anything is compiled, and joined to its
rows."""

import dataclasses
import pathlib

import numpy as np

from data.rows.dataset import Dataset
from data.rows.fields import TARGET, Row
from data.targets.format import Targets, how_to_go_on
from maverick_jax.errors import InputError
from maverick_jax.model_source import open_source
from train.config import RunConfig
from train.objectives.base import StoredFields

CHECKED_ROWS = 16


@dataclasses.dataclass(frozen=True)
class TargetsOf:
    """(number, row) -> the row's targets, as fields of a batch. Worker processes get the folder's path instead of its
    arrays."""

    targets: Targets
    names: tuple[str, ...]

    def __call__(self, index: int, row: Row) -> Row:
        arrays = self.targets.row(index, row)
        return {name: arrays[name.removeprefix(TARGET)] for name in self.names}


def open_targets(config: RunConfig, stored: StoredFields, data: Dataset) -> Targets:
    """Opens the folder of `stored`. Raises InputError, with one line per difference, unless the folder is complete and
    its targets were made with this run's settings, tokenizer and data. At most `CHECKED_ROWS` rows, including the first
    and the last, are compared now, and every row when it is read."""
    targets = Targets.open(pathlib.Path(stored.path).expanduser())
    steps = config.place.steps
    header, rows = targets.header, steps * config.data.batch_size
    expected = {
        "vocab_size": ("model.vocab_size", config.model.vocab_size),
        **stored.header,
        "sequence_length": ("data.sequence_length", config.data.sequence_length),
    }
    said = {name: (key, getattr(header, name), here) for name, (key, here) in expected.items()}
    lines = [f"{key}: {there} there, {here} here" for key, there, here in said.values() if there != here]
    if header.tokenizer != data.tokenizer.fingerprint:
        lines.append(f"data.tokenizer: made with another tokenizer than {data.tokenizer.name}")
    if header.rows < rows:
        needed = f"{steps:,} batches of {config.data.batch_size} need {rows:,} rows"
        lines.append(f"run.steps: {needed}; {header.rows:,} there")
    if stored.model is not None and open_source(stored.model).fingerprint() != header.teacher:
        lines.append(f"objective.teacher: made by another model than {stored.model}")
    if lines:
        why = f"{targets.path} contains targets that do not fit this run:"
        anew = f"change the config, or make targets for it in another folder with {how_to_go_on('DIR')}"
        raise InputError("\n".join([why, *(f"  {line}" for line in lines), anew]))
    for index in np.unique(np.linspace(0, rows - 1, min(rows, CHECKED_ROWS)).astype(int)).tolist():
        targets.row(index, data.row(index))
    return targets
