"""Engines: generations and scores of many requests, each as if it were alone."""

from maverick_jax.inference.engine.one_at_a_time import OneAtATime
from maverick_jax.inference.engine.requests import (
    Engine,
    EngineStatus,
    Finish,
    Generation,
    GenerationRequest,
    TokenFilter,
    TokenScore,
    Update,
)
from maverick_jax.inference.engine.slot_engine import EngineSettings, SlotEngine

__all__ = [
    "Engine",
    "EngineSettings",
    "EngineStatus",
    "Finish",
    "Generation",
    "GenerationRequest",
    "OneAtATime",
    "SlotEngine",
    "TokenFilter",
    "TokenScore",
    "Update",
]
