"""Reinforcement learning: the objective, its methods, and their mathematics as pure functions of arrays."""

from train.objectives.policy.objective import Policy

__all__ = ["Policy"]
