"""Curate trajectories: filter them by rules and scores, and replace personal data.

The rules and the score are described in docs/reference/trajectories.md.
"""

from data.trajectories.filters.apply import apply
from data.trajectories.filters.config import CurationConfig, FilterConfig, ScrubConfig
from data.trajectories.filters.report import Report, show
from data.trajectories.filters.score import score
from data.trajectories.filters.scrub import Scrubber

__all__ = ["CurationConfig", "FilterConfig", "Report", "ScrubConfig", "Scrubber", "apply", "score", "show"]
