"""The fields of rows and batches: one table for the code that makes them, places them on devices or learns from them.

A row of the stream is a dict of arrays by field name; a batch contains the same arrays for many rows. An objective
names the fields that it reads; a new field needs one entry here and the code that computes it.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from data.preferences.turn_labels import LABELS
from data.trajectories.kinds import TokenKind
from maverick_jax.reasoning import Mark

Row = dict[str, np.ndarray]
"""The fields of one row, by name; `BatchField` declares their shapes."""
Shape = Literal["per token", "per row"]
Source = Literal["every row", "trajectories", "preferences", "rendered", "stored", "pictures", "rollouts"]


@dataclasses.dataclass(frozen=True)
class BatchField:
    """The declaration of one array of a batch."""

    name: str
    dtypes: tuple[np.dtype, ...]
    """Allowed dtypes; most fields have one."""
    meaning: str
    shape: Shape = "per token"
    """Shape in one row, before further axes. `per token`: [T]; `per row`: []."""
    fill: int = 0
    """Value at places without a token."""
    trailing: tuple[str, ...] = ()
    """Names of the sizes of further axes."""
    source: Source = "every row"
    """Rows that have the field: every row, rows of data with trajectories or pictures, rows of pairs, both of these,
    rows joined with stored fields, rows of steps with pictures, or rows of rollouts that the model made."""
    values: tuple[str, ...] = ()
    """Names of the values 0, 1, ...; empty if the values are not names."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype of new arrays: the first allowed one."""
        return self.dtypes[0]

    @property
    def axes(self) -> tuple[str, ...]:
        """Logical axes of the field in a batch, [B, T] or [B]. Trailing axes are not sharded."""
        return ("batch", "length") if self.shape == "per token" else ("batch",)

    def filled(self, length: int) -> np.ndarray:
        """The field of a row of `length` places without tokens, without trailing axes."""
        return np.full((length,)[: len(self.axes) - 1], self.fill, self.dtype)


def _field(name: str, dtypes: str, meaning: str, **more) -> BatchField:
    return BatchField(name, tuple(np.dtype(dtype) for dtype in dtypes.split()), meaning, **more)


MARKS = "marks"
"""Name of the field that models with reasoning heads read beside what the objective reads."""
TILES = "tiles"
"""Name of the field with pictures."""
TARGET = "target_"
"""Prefix of the names of a teacher's stored targets."""

TABLE = (
    _field("tokens", "int32", "input ids"),
    _field("labels", "int32", "the next token of the same document; 0 where there is none"),
    _field("positions", "int32", "position inside the document, from 0"),
    _field("segment_ids", "int32", "number of the document in the row, from 1; 0 is padding"),
    _field(
        "loss_weights",
        "float32",
        "loss weight of the label: 0 or 1, in trajectories by kind, in rollouts its share; 0 where there is no label",
    ),
    _field(
        "kinds",
        "uint8",
        "token kind of the label (`data.trajectories.kinds.TokenKind`); 255 where no label counts",
        fill=255,
        source="trajectories",
        values=tuple(kind.name.lower() for kind in sorted(TokenKind)),
    ),
    _field(
        "choices",
        "uint8",
        "the label's part in a decision, as bits (`data.trajectories.decisions`); 0 for most",
        source="trajectories",
    ),
    _field(
        MARKS,
        "uint8",
        "what the token is to reasoning heads (`maverick_jax.reasoning.Mark`)",
        source="rendered",
        values=tuple(mark.name.lower() for mark in Mark),
    ),
    _field(
        "pair_ids",
        "int32",
        "number of the label's pair in the row, from 1; 0 where no label counts",
        source="preferences",
    ),
    _field(
        "sides",
        "uint8",
        "the side of its pair that the label is in; 0 where no label counts",
        source="preferences",
        values=("none", "chosen", "rejected", "mismatched"),
    ),
    _field(
        "pair_turns",
        "int32",
        "number of the label's assistant turn in its side, from 0",
        source="preferences",
    ),
    _field(
        "pair_turns_left",
        "int32",
        "number of assistant turns after it in its side",
        source="preferences",
    ),
    _field(
        "pair_tail",
        "uint8",
        "1 if the label comes after as many labels with a weight as the shorter side has",
        source="preferences",
    ),
    _field(
        "side_ends",
        "int32",
        "2i - 1 at the last token of the chosen side of the row's pair i, 2i at that of the rejected one; 0 elsewhere",
        source="preferences",
    ),
    _field(
        "turn_labels",
        "uint8",
        "at the last token of an assistant turn its label, if it has one; 255 elsewhere",
        fill=255,
        source="preferences",
        values=LABELS,
    ),
    _field(
        f"{TARGET}ids",
        "uint16 uint32",
        "the teacher's k most likely tokens, most likely first",
        trailing=("k",),
        source="stored",
    ),
    _field(
        f"{TARGET}log_probs",
        "float16 float32",
        "their log-probabilities",
        trailing=("k",),
        source="stored",
    ),
    _field(
        f"{TARGET}log_tail",
        "float32",
        "log of the probability of all other tokens; -inf for 0",
        source="stored",
    ),
    _field(
        f"{TARGET}log_normaliser",
        "float32",
        "logsumexp of the teacher's logits over the temperature",
        source="stored",
    ),
    _field(
        f"{TARGET}label_log_prob",
        "float32",
        "the teacher's log-probability of the label, at temperature 1",
        source="stored",
    ),
    _field(
        f"{TARGET}entropy",
        "float32",
        "entropy of the teacher's distribution, nats, at temperature 1",
        source="stored",
    ),
    _field(
        f"{TARGET}sample_ids",
        "uint16 uint32",
        "tokens drawn from all others, with replacement",
        trailing=("s",),
        source="stored",
    ),
    _field(
        f"{TARGET}sample_log_probs",
        "float16 float32",
        "their log-probabilities",
        trailing=("s",),
        source="stored",
    ),
    _field(
        "advantages",
        "float32",
        "how much better the rollout went than expected, from the label's place on",
        source="rollouts",
    ),
    _field(
        "sampled_log_probs",
        "float32",
        "log-probability of the label by the engine that sampled it, at temperature 1",
        source="rollouts",
    ),
    _field(
        "old_log_probs",
        "float32",
        "log-probability of the label before the first update on these rollouts; inf: that of this update",
        source="rollouts",
    ),
    _field(
        "old_values",
        "float32",
        "the value head's estimate at the label's place when the rollouts were made",
        source="rollouts",
    ),
    _field(
        "returns",
        "float32",
        "what the value head should estimate at the label's place",
        source="rollouts",
    ),
    _field(
        "routes",
        "int16",
        "experts that the token goes to, by layer with experts, best first",
        trailing=("layers", "k"),
        source="rollouts",
    ),
    _field(
        "violation_rate",
        "float32",
        "share of the episodes of the row's set that break a rule",
        shape="per row",
        source="rollouts",
    ),
    _field(
        TILES,
        "uint8",
        "pixels of the row's tiles in reading order, then zeros; M is the step's tile budget, and 0 means no field",
        shape="per row",
        trailing=("M", "C", "S", "S"),
        source="pictures",
    ),
)
FIELDS: dict[str, BatchField] = {field.name: field for field in TABLE}
PACKED = tuple(field.name for field in TABLE if field.source == "every row")
"""The fields that packing makes for every row."""
MISMATCHED = FIELDS["sides"].values.index("mismatched")
"""The value of `sides` for an answer to another prompt."""
TARGETS = tuple(field for field in TABLE if field.name.startswith(TARGET))
"""The fields of a teacher's targets. Folders of targets are written in this order, so it must not change."""


def filled(names: Iterable[str], length: int) -> Row:
    """The fields `names` of a row of `length` places without tokens."""
    return {name: FIELDS[name].filled(length) for name in names}


def chosen(row: Mapping[str, np.ndarray], names: Iterable[str]) -> Row:
    """The fields `names` of a row or of several stacked rows. Raises ValueError if a field is missing or has a dtype
    that the table does not allow."""
    found = {}
    for name in names:
        if name not in row:
            raise ValueError(f"rows have no field {name!r}; they have {', '.join(row)}")
        if row[name].dtype not in FIELDS[name].dtypes:
            expected = " or ".join(map(str, FIELDS[name].dtypes))
            raise ValueError(f"field {name!r} has dtype {row[name].dtype}; expected {expected}")
        found[name] = row[name]
    return found
