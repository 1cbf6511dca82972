"""The mathematics of reinforcement learning: advantages and losses, as pure functions of arrays."""
