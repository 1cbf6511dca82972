"""Scores by length of the context and by depth in it, each with its interval."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from data.graders.figures import Figure, figure

Scored = tuple[float, Hashable]
"""A score and its source."""


class Grid(NamedTuple):
    """Scores by length and depth."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    scores: dict[tuple[int, float], list[Scored]]
    """Those at each length and depth that has any."""

    def margins(self) -> dict[str, Figure]:
        """The figure of each length and of each depth, over all of the other, where there are several."""
        found: dict[str, Figure] = {}
        for what, values, at in (("length", self.lengths, 0), ("depth", self.depths, 1)):
            for value in values if len(values) > 1 else ():
                name = f"length {value:>8}" if what == "length" else f"depth {value:.2f}"
                parts = [part for place, part in self.scores.items() if place[at] == value]
                found[name] = _figure([one for part in parts for one in part])
        return found

    def as_json(self) -> dict[str, Any]:
        """`lengths`, `depths`, and `cells`: by length, the figure at each depth; None where there is no score."""
        cell = lambda place: _figure(self.scores[place]).as_json() if place in self.scores else None
        cells = [[cell((length, depth)) for depth in self.depths] for length in self.lengths]
        return {"lengths": list(self.lengths), "depths": list(self.depths), "cells": cells}


def grid_of(places: Sequence[tuple[int, float]], scores: Sequence[float], groups: Sequence[Hashable]) -> Grid:
    """The grid of scores at places (length, depth); `groups`: the source of each."""
    found: dict[tuple[int, float], list[Scored]] = {}
    for place, score, group in zip(places, scores, groups, strict=True):
        found.setdefault(place, []).append((score, group))
    lengths, depths = sorted({length for length, _ in found}), sorted({depth for _, depth in found})
    return Grid(tuple(lengths), tuple(depths), found)


def _figure(scored: Sequence[Scored]) -> Figure:
    return figure([score for score, _ in scored], [group for _, group in scored])
