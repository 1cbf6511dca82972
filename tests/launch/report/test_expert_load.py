"""Heatmaps of the load of experts: what they show, their bounds, and that hostile lines draw nothing."""

import re

import numpy as np
import pytest

from launch.report import expert_load
from launch.report.expert_load import LEVELS, heatmaps, load_of
from launch.report.page import page
from launch.report.run_record import read_run
from tests.launch.report.test_page import Page, line, run

__all__ = ["run"]


def lines(*loads) -> list[dict]:
    return [line(step, router_load=load) for step, load in enumerate(loads, 1)]


def cells(figure: str) -> np.ndarray:
    """The color of each cell [experts, columns], from the paths of a figure."""
    columns, experts = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', figure).groups())
    found = np.full((experts, columns), -1)
    for color, path in re.findall(r'<path fill="var\(--load(\d)\)" d="([^"]*)"', figure):
        for begin, row, length, back in re.findall(r"M(\d+) (\d+)h(\d+)v1H(\d+)z", path):
            assert begin == back and (found[int(row), int(begin) : int(begin) + int(length)] == -1).all()
            found[int(row), int(begin) : int(begin) + int(length)] = int(color)
    return found


def figures(text: str) -> list[str]:
    return re.findall(r"<figure><svg.*?</figure>", text)


def test_each_cell_has_the_color_of_its_load():
    first, second = [[0, 100, 300, 0], [100, 100, 100, 100]], [[100, 24, 249, 27], [79, 81, 124, 116]]
    of_layers = figures(heatmaps(lines(first, second)))
    expected = np.searchsorted(LEVELS, np.array([first, second]) / 100, side="right")  # [columns, layers, experts]
    assert len(of_layers) == 2
    for layer, figure in enumerate(of_layers):
        np.testing.assert_array_equal(cells(figure), expected[:, layer].T)
    assert "MoE layer 0: at the end, expert 2 has 2.5 times the mean; 0 of 4 have no token" in of_layers[0]
    assert (cells(of_layers[1])[:, 0] == 4).all()  # perfectly even is the middle color


def test_many_lines_become_columns_of_means():
    random = np.random.default_rng(0).integers(0, 400, (1000, 1, 8))
    text = heatmaps(lines(*random.tolist()))
    (figure,) = figures(text)
    means = np.stack([part.mean(axis=0) for part in np.array_split(random[:, 0] / 100, 48)])
    np.testing.assert_array_equal(cells(figure), np.searchsorted(LEVELS, means, side="right").T)
    assert "Steps 1 to 1,000" in text and "A column is the mean of up to 21 lines." in text


def test_the_size_of_the_heatmaps_is_bounded(monkeypatch):
    monkeypatch.setattr(expert_load, "MAX_LAYERS", 3)
    monkeypatch.setattr(expert_load, "MAX_CELLS", 3 * 128 * 5)
    random = np.random.default_rng(0).integers(0, 400, (20, 6, 128))
    text = heatmaps(lines(*random.tolist()))
    assert len(figures(text)) == 3 and cells(figures(text)[0]).shape == (128, 5)
    assert "3 more layers are not drawn" in text


@pytest.mark.parametrize(
    "load",
    [[], [[]], [1, 2], [[1], [1, 2]], [["x"]], [[None]], [[-1]], [["Infinity"]], [[1e400]], [[1] * 5000], "[[1]]", 5,
     {"a": [1]}, [[[1]]]],
    ids=str,
)  # fmt: skip
def test_what_is_no_load_is_left_out(load):
    assert heatmaps([line(1, router_load=load)]) == ""
    good = [[50, 150]]
    assert load_of([line(1, router_load=load), line(2, router_load=good)]).lines == 1


def test_lines_of_another_shape_than_the_newest_are_left_out():
    found = load_of(lines([[100, 100]], [[50, 150]], [[100, 100, 100]]))
    assert found.values.shape == (1, 1, 3) and found.steps == (3, 3)


def test_heatmaps_are_in_the_page_of_a_run_with_experts_alone(run):
    text = page(read_run(run(*lines([[0, 200]], [[100, 100]]))))
    assert "Load of each expert" in text and "--load8:" in text and 'class="load"' in text
    found = Page(text)
    assert all(address[1:] in found.ids for address in found.addresses)
    assert text.count("--load4:") == 2  # in light and in dark


def test_a_dense_run_has_no_heatmap(run):
    assert "Load of each expert" not in page(read_run(run(line(1), line(2))))
