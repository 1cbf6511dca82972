"""Heat maps: a cell for each length and depth that has a score, with its share in percent."""

from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from launch.report.evaluation import page
from launch.report.heat_map import COLORS, draw_heat_map

CELL = {"n": 4, "low": 0.0, "high": 1.0}
GRID = {
    "lengths": [256, 1024],
    "depths": [0.0, 1.0],
    "cells": [[{**CELL, "value": 1.0}, {**CELL, "value": 0.25}], [{**CELL, "value": 0.0}, None]],
}


def test_each_cell_has_its_color_and_its_percents_at_its_length_and_depth():
    axes = Figure().add_subplot()
    draw_heat_map(axes, GRID)
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "100", (0, 1): "25", (1, 0): "0"}
    colors = [patch.get_facecolor() for patch in axes.patches]
    assert colors == [to_rgba(COLORS(share)) for share in (1.0, 0.25, 0.0)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["256", "1,024"]
    assert axes.get_ylim() == (1.5, -0.5)  # the beginning is at the top


def test_the_page_of_an_evaluation_has_the_map_and_a_table_of_its_cells():
    figure = {"value": 0.5, "n": 12, "low": 0.2, "high": 0.8}
    task = {"n": 12, "score": figure, "parts": {}, "figures": {}, "examples": [], "source": "s", "license": "l"}
    task |= dict.fromkeys(("unanswered", "malformed", "cut", "loop"))
    shown = page({"tasks": {"needle": {**task, "grid": GRID}}})
    assert "Found, in percent, by length and depth" in shown and "<td>0.250</td>" in shown.replace('class="number"', "")
    assert "Found, in percent" not in page({"tasks": {"needle": task}})
