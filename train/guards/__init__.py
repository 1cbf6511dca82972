"""Guards with a model: the risk head of a reward model, and a generative classifier."""

from train.guards.classifier import SafetyClassifier
from train.guards.risk_head import RiskHead

__all__ = ["RiskHead", "SafetyClassifier"]
