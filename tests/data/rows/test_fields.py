"""The table of batch fields agrees with rows, stored targets and the documentation."""

import pathlib

import numpy as np
import pytest

from data.rows.dataset import open_dataset
from data.rows.fields import FIELDS, PACKED, TABLE, TARGET, BatchField, chosen, filled
from data.trajectories.kinds import TokenKind
from maverick_jax.ops.sparse_targets import TopKTargets
from tests.helpers.stub_targets import HEADER
from tests.helpers.trajectory_rows import data_config

DOCUMENT = pathlib.Path(__file__).resolve().parents[3] / "docs" / "architecture.md"


def documented(field: BatchField) -> str:
    """The field's line in the documentation."""
    shape = str(["T"] * (field.shape == "per token") + [*field.trailing])
    dtypes = " or ".join(map(str, field.dtypes))
    return f"| `{field.name}` | {dtypes} | {shape.replace(chr(39), '')} | {field.source} | {field.meaning} |"


def test_the_documentation_lists_each_field_in_order():
    lines = DOCUMENT.read_text().splitlines()
    begin = lines.index("| field | dtype | of a row | rows that have it | meaning |") + 2
    assert lines[begin : begin + len(TABLE) + 1] == [*map(documented, TABLE), ""]


@pytest.mark.parametrize("trajectories", [False, True])
def test_rows_have_the_fields_of_the_table(trajectories, tmp_path):
    config = data_config(tmp_path)
    if not trajectories:
        text = {"path": "package:tinyshakespeare"}
        config = type(config).model_validate({**config.model_dump(), "sources": {"text": text}})
    row = open_dataset(config, "train", seed=0).row(0)
    expected = [
        f for f in TABLE if f.source == "every row" or (trajectories and f.source in ("trajectories", "rendered"))
    ]
    assert set(row) == {field.name for field in expected}
    for field in expected:
        assert row[field.name].dtype == field.dtype and row[field.name].shape == field.filled(512).shape
    if trajectories:
        padding = row["segment_ids"] == 0
        assert padding.any()
        for field in expected:
            assert (row[field.name][padding] == field.fill).all(), field.name
        assert len(FIELDS["kinds"].values) == len(TokenKind)
        assert FIELDS["kinds"].values[TokenKind.CALL_NAME] == "call_name"


@pytest.mark.parametrize(
    ("changes", "ids", "log_probs"),
    [({}, "<u2", "<f2"), ({"vocab_size": 2**16 + 1}, "<u4", "<f2"), ({"dtype": "float32"}, "<u2", "<f4")],
)
def test_the_format_of_stored_targets_does_not_change(changes, ids, log_probs):
    """Existing folders are read in this order."""
    found = HEADER.model_copy(update=changes).layout
    assert found == {
        "ids": (np.dtype(ids), (8, 4)),
        "log_probs": (np.dtype(log_probs), (8, 4)),
        **{name: (np.dtype("<f4"), (8,)) for name in ("log_tail", "log_normaliser", "label_log_prob", "entropy")},
        "sample_ids": (np.dtype(ids), (8, 2)),
        "sample_log_probs": (np.dtype(log_probs), (8, 2)),
    }
    assert [*found] == [name.removeprefix(TARGET) for name in FIELDS if name.startswith(TARGET)]
    assert {*TopKTargets._fields} <= {*found}
    assert [*HEADER.model_copy(update={"tail_samples": 0}).layout] == [*found][:6]


def test_a_missing_field_or_another_dtype_is_an_error():
    row = filled(PACKED, 4)
    assert [*chosen(row, ("labels", "tokens"))] == ["labels", "tokens"]
    with pytest.raises(ValueError, match="no field 'kinds'; they have tokens, labels"):
        chosen(row, (*PACKED, "kinds"))
    with pytest.raises(ValueError, match="field 'tokens' has dtype int64; expected int32"):
        chosen(row | {"tokens": np.zeros(4, np.int64)}, PACKED)


def test_axes_of_fields():
    assert FIELDS["tokens"].axes == ("batch", "length") and FIELDS["tiles"].axes == ("batch",)
