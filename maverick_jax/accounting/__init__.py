"""The cost of a model: bytes per device, FLOPs per token, bytes sent. Everything is computed from the parameters that
`maverick_jax.parameters` declares; nothing is built or compiled."""
