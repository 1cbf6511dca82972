"""Bytes that a train step sends between devices."""

from maverick_jax import parameters
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.model.remat import POLICIES
from maverick_jax.sharding import BATCH_AXES, EXPERT_AXIS, TENSOR_AXIS, axes_tuple, size_of


def communication(config: ModelConfig, layout: Layout) -> dict[str, int]:
    """Bytes that one device sends in one optimizer step, by kind of collective, for ring algorithms.

    `gather`: weights before use, forward and backward, but the output matrix once; `reduce_scatter`: their gradients,
    in the compute dtype; `all_reduce`: gradients of replicated parameters, in float32, and partial sums of tensor
    parallelism; `all_to_all`: tokens to their experts and back, in the forward and backward passes, and once more if
    the backward pass repeats the layer.
    """
    element, wide, passes = BYTES[config.compute_dtype], BYTES["float32"], layout.accumulation_steps
    gather = reduce_scatter = replicated = 0
    batch_ways = size_of(layout.sizes, BATCH_AXES)
    for p in [p for p in parameters.of_model(config) if p.role != "vision"]:  # a batch of text does not use those
        held, n = p.size // layout.parts(p.axes), layout.gathered(p.axes)
        uses = 1 if p.role == "head" else 2  # the loss computes the gradient of its logits in its forward pass
        gather += uses * passes * (n - 1) * held * element
        reduce_scatter += passes * (n - 1) * held * element
        spread = [a for axis in p.axes if axis for a in axes_tuple(getattr(layout.rules, axis)) if a in BATCH_AXES]
        copies = batch_ways // size_of(layout.sizes, tuple(spread))
        replicated += int(2 * passes * (copies - 1) / copies * held * wide)
    activation = layout.tokens * config.hidden_size * element * passes
    repeats = 3 if POLICIES[config.remat].repeats_communication else 2
    experts, tensor = layout.sizes.get(EXPERT_AXIS, 1), layout.sizes.get(TENSOR_AXIS, 1)
    tokens_moved = 2 * repeats * config.num_moe_layers * config.num_experts_per_tok * activation
    partial_sums = 2 * repeats * config.num_hidden_layers * activation
    return {
        "gather": gather,
        "reduce_scatter": reduce_scatter,
        "all_reduce": replicated + 2 * partial_sums * (tensor - 1) // tensor,
        "all_to_all": tokens_moved * (experts - 1) // experts,
    }
