"""Agent trajectories: one normal form, readers of common formats, failed calls, token kinds and loss weights
(docs/reference/trajectories.md)."""

from data.trajectories.actions import Action, find_actions
from data.trajectories.formats import FORMATS
from data.trajectories.kinds import TokenKind, token_kinds
from data.trajectories.reading import RecordProblem, Tally, count, read_tools, read_trajectories
from data.trajectories.trajectory import Outcome, Provenance, Step, Trajectory
from data.trajectories.weights import KindWeights, OutcomeWeights, loss_weights

__all__ = [
    "FORMATS",
    "Action",
    "KindWeights",
    "Outcome",
    "OutcomeWeights",
    "Provenance",
    "RecordProblem",
    "Step",
    "Tally",
    "TokenKind",
    "Trajectory",
    "count",
    "find_actions",
    "loss_weights",
    "read_tools",
    "read_trajectories",
    "token_kinds",
]
