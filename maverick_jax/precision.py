"""Choose the compute dtype for a backend."""

import logging

import jax

from maverick_jax.config import ModelConfig

log = logging.getLogger(__name__)


def for_backend(config: ModelConfig, backend: str | None = None) -> ModelConfig:
    """The config with a compute dtype that is fast on `backend` (default: JAX's). CPUs multiply float32 faster than
    bfloat16 (docs/results/benchmarks.md), so on a CPU bfloat16 becomes float32, which is at least as exact."""
    if (backend or jax.default_backend()) != "cpu" or config.compute_dtype == "float32":
        return config
    log.info("model.compute_dtype: %s is slower than float32 on a CPU; computing in float32", config.compute_dtype)
    return config.model_copy(update={"compute_dtype": "float32"})
