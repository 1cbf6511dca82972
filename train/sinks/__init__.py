"""Sinks of a run's metrics: one file per kind, chosen by `logging.sinks.NAME.kind`."""

from typing import Annotated

from maverick_jax.settings.kinds import Kinds
from train.sinks.base import About, OpenSink, ProjectName, SinkConfig
from train.sinks.tensorboard import TensorBoard
from train.sinks.trackio import Trackio
from train.sinks.wandb import WeightsAndBiases

__all__ = [
    "SINKS",
    "About",
    "AnySink",
    "OpenSink",
    "ProjectName",
    "SinkConfig",
    "TensorBoard",
    "Trackio",
    "WeightsAndBiases",
]

SINKS = Kinds("sink", SinkConfig)
for _kind in (TensorBoard, WeightsAndBiases, Trackio):
    SINKS.register(_kind)

AnySink = Annotated[SinkConfig, SINKS]
