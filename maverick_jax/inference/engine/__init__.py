"""Engines: generations and scores of many requests, each as if it were alone."""

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

__all__ = [
    "Engine",
    "EngineStatus",
    "Finish",
    "Generation",
    "GenerationRequest",
    "TokenFilter",
    "TokenScore",
    "Update",
]
