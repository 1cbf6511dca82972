"""Choose the compute dtype for a platform."""

import logging

from maverick_jax.config import ModelConfig
from maverick_jax.target import multiplies_bfloat16, traced_platform

log = logging.getLogger(__name__)


def for_platform(config: ModelConfig, platform: str | None = None) -> ModelConfig:
    """The config with a compute dtype that is fast on `platform` (None: that of the mesh in use).

    Only CPUs that multiply bfloat16 natively are faster with it (docs/results/benchmarks.md). On others bfloat16
    becomes float32, which is at least as exact.
    """
    if (platform or traced_platform()) != "cpu" or config.compute_dtype == "float32":
        return config
    if multiplies_bfloat16():
        log.info("model.compute_dtype: %s, because this CPU multiplies it natively", config.compute_dtype)
        return config
    log.info("model.compute_dtype: %s is slower than float32 on this CPU; computing in float32", config.compute_dtype)
    return config.model_copy(update={"compute_dtype": "float32"})
