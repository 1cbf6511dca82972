"""Whole agent runs: one normal form, readers of the formats in use, what failed in them (docs/trajectories.md)."""

from data.trajectories.actions import Action, find_actions
from data.trajectories.formats import FORMATS
from data.trajectories.reading import Problem, Tally, count, read_tools, read_trajectories
from data.trajectories.trajectory import Outcome, Provenance, Step, Trajectory

__all__ = [
    "FORMATS",
    "Action",
    "Outcome",
    "Problem",
    "Provenance",
    "Step",
    "Tally",
    "Trajectory",
    "count",
    "find_actions",
    "read_tools",
    "read_trajectories",
]
