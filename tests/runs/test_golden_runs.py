"""Compares golden runs of 20 steps, every shipped tiny run and variants, with their record."""

import json

import pytest

from tests.helpers.golden_runs import RECORD, compare, run_all


@pytest.mark.slow
def test_golden_runs_are_unchanged(tmp_path):
    assert compare(json.loads(RECORD.read_text()), run_all(tmp_path)) == []


def test_a_changed_run_is_reported():
    record = json.loads(RECORD.read_text())
    changed = {name: case | {"losses": [x * 1.5 for x in case["losses"]]} for name, case in record["cases"].items()}
    assert len(compare(record, record["cases"])) == 0
    assert len(compare(record, changed)) == len(record["cases"])
