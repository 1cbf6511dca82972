"""Learning from pairs: of two answers, or two runs of one task, one is preferred."""

from train.objectives.preference.objective import Preference

__all__ = ["Preference"]
