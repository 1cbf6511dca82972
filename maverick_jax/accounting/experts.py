"""How the routed experts' products are computed, and what that costs."""

from maverick_jax.accounting.devices import MATRIX_SHARE
from maverick_jax.accounting.fused import MOSAIC, SHARES
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig


def are_grouped(config: ModelConfig, layout: Layout) -> bool:
    """Whether one kernel multiplies the rows of several experts: on TPUs, and in bfloat16 on GPUs, here all Hopper."""
    several = config.num_local_experts > layout.ways("experts")
    return several and (layout.platform == "tpu" or (layout.platform == "gpu" and BYTES[config.compute_dtype] == 2))


def pace(config: ModelConfig, layout: Layout) -> float:
    """Time of a FLOP of their products, divided by that of other products."""
    return MATRIX_SHARE / SHARES[MOSAIC] if layout.platform == "gpu" and are_grouped(config, layout) else 1.0


def gradient_bytes(config: ModelConfig, layout: Layout) -> int:
    """Bytes of an element of their weights' gradients as these leave the products. Rounds of the exchange, and tiles,
    are summed in float32."""
    summed = layout.ways("experts") > 1 or not (
        config.num_local_experts == layout.ways("experts") or are_grouped(config, layout)
    )
    return BYTES["float32" if summed else config.compute_dtype]
