"""The fields of rows and batches: one table, read by all that makes them, places them on devices or learns from them.

A row of the stream is a dict of arrays by field name; a batch is the same arrays of many rows. An objective names the
fields that it reads; a new field is one entry here and the code that computes it.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from data.trajectories.kinds import TokenKind
from maverick_jax.errors import InputError

Row = dict[str, np.ndarray]
"""The fields of one row, by name: `BatchField` says the shape of each."""
Shape = Literal["per token", "per row", "ragged"]
Source = Literal["every row", "trajectories", "stored", "images"]


@dataclasses.dataclass(frozen=True)
class BatchField:
    """An array of a batch."""

    name: str
    dtypes: tuple[np.dtype, ...]
    """What it may be; most are of one dtype."""
    meaning: str
    shape: Shape = "per token"
    """Of a row: [T] `per token`, [] `per row`; `ragged`: as many elements as the row has images, say."""
    fill: int = 0
    """Its value where a row has no token."""
    trailing: tuple[str, ...] = ()
    """Names of the sizes of axes after these."""
    source: Source = "every row"
    """Which rows have it: every one; those of data with trajectories; those joined to what is stored in a folder; those
    with images."""
    values: tuple[str, ...] = ()
    """Names of its values from 0, where it holds numbers of things."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype it is made in."""
        return self.dtypes[0]

    @property
    def axes(self) -> tuple[str, ...]:
        """Logical axes of a batch of it, [B, T] or [B]. Trailing axes are whole on every device. Raises
        InputError for a ragged field."""
        if self.shape == "ragged":
            raise InputError(f"{self.name}: ragged fields cannot be read from data yet")
        return ("batch", "length") if self.shape == "per token" else ("batch",)

    def filled(self, length: int) -> np.ndarray:
        """Of a row of `length` without tokens; not for ragged fields."""
        return np.full((length,)[: len(self.axes) - 1], self.fill, self.dtype)


def _field(name: str, dtypes: str, meaning: str, **more) -> BatchField:
    return BatchField(name, tuple(np.dtype(dtype) for dtype in dtypes.split()), meaning, **more)


TARGET = "target_"
"""How the names of a teacher's stored targets begin."""

TABLE = (
    _field("tokens", "int32", "input ids"),
    _field("labels", "int32", "the next token of the same document; 0 where there is none"),
    _field("positions", "int32", "position inside the document, from 0"),
    _field("segment_ids", "int32", "number of the document in the row, from 1; 0 is padding"),
    _field(
        "loss_weights",
        "float32",
        "how much the label counts: 0 or 1, in trajectories by kind; 0 where there is no label",
    ),
    _field(
        "kinds",
        "uint8",
        "what the label is (`data.trajectories.kinds.TokenKind`); 255 where none counts",
        fill=255,
        source="trajectories",
        values=tuple(kind.name.lower() for kind in sorted(TokenKind)),
    ),
    _field(
        "choices",
        "uint8",
        "what the label is to decisions, as bits (`data.trajectories.decisions`); 0 for most",
        source="trajectories",
    ),
    _field(
        f"{TARGET}ids",
        "uint16 uint32",
        "the teacher's k likeliest tokens, in falling order",
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
        "log of the mass of all other tokens; -inf for none",
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
        "tokens drawn from outside the k likeliest, with replacement",
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
        "pixel_values",
        "float32",
        "tiles of the batch's images [N, C, S, S], in reading order",
        shape="ragged",
        source="images",
    ),
)
FIELDS: dict[str, BatchField] = {field.name: field for field in TABLE}
PACKED = tuple(field.name for field in TABLE if field.source == "every row")
"""The fields that packing gives every row."""
TARGETS = tuple(field for field in TABLE if field.name.startswith(TARGET))
"""The fields of a teacher's targets. Folders of targets are written in this order: it must not change."""


def filled(names: Iterable[str], length: int) -> Row:
    """These fields of a row of `length` without tokens."""
    return {name: FIELDS[name].filled(length) for name in names}


def chosen(row: Mapping[str, np.ndarray], names: Iterable[str]) -> Row:
    """These fields of a row, or of several stacked ones. Raises ValueError for a field that it lacks, and for one of
    another dtype than the table says."""
    found = {}
    for name in names:
        if name not in row:
            raise ValueError(f"rows have no field {name!r}; they have {', '.join(row)}")
        if row[name].dtype not in FIELDS[name].dtypes:
            expected = " or ".join(map(str, FIELDS[name].dtypes))
            raise ValueError(f"field {name!r} has dtype {row[name].dtype}; expected {expected}")
        found[name] = row[name]
    return found
