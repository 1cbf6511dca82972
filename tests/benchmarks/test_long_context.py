"""The benchmark of long context: its configs, and how grids of several seeds become one."""

import pytest

from benchmarks import long_context
from train.config_files import read_run


def cell(value: float, n: int = 10) -> dict[str, float]:
    return {"value": value, "n": n, "low": 0.0, "high": 1.0}


def test_every_variant_has_the_borders_at_which_it_is_asked(tmp_path):
    for variant, (changes, stages) in long_context.VARIANTS.items():
        run = read_run(long_context.CONFIG, [f"run.dir={tmp_path}", *changes])
        ends = {part.place.name: part.run.steps for part in run.in_stages}
        assert ends == long_context.BORDERS and set(stages) <= set(ends), variant
    assert (tmp_path / "held_out.yaml").write_text(long_context.HELD_OUT)
    held_out = read_run(str(tmp_path / "held_out.yaml"), [])
    assert set(held_out.data.sources) == {"records"} and len(held_out.in_stages) == 1


def test_seeds_are_pooled_cell_by_cell_and_the_table_has_the_worst():
    grid = {"lengths": [256, 1024], "depths": [0.0, 1.0], "cells": [[cell(1.0), cell(1.0)], [cell(0.5), cell(0.9)]]}
    other = {**grid, "cells": [[cell(1.0), cell(0.8)], [cell(0.7), cell(0.9)]]}
    pooled = long_context.pooled([grid, other])
    assert pooled["cells"][1][0]["value"] == pytest.approx(0.6) and pooled["cells"][1][0]["n"] == 20
    assert pooled["cells"][1][0]["low"] < 0.6 < pooled["cells"][1][0]["high"]
    runs = [
        {"variant": "rotary", "stages": {stage: {"grids": {"records": one, "needle": one}}
                                         for stage in long_context.BORDERS}}
        for one in (grid, other)
    ]  # fmt: skip
    first, *_ = long_context.table(runs).splitlines()
    assert first.startswith("| rotary, after short (2 seeds) | 95 | 75 | 60 (39 to 78) | 95/75 |")
