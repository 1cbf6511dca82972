"""What a model costs: bytes per device, FLOPs per token, bytes on the wire. Nothing is built or compiled: the
parameters are those that `maverick_jax.parameters` declares."""
