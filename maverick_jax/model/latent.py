"""Latent thoughts: at their places the model reads its own hidden state of the place before, not a token.

z_i = s rms(h_{i-1} (I + M)), with h after the final norm and s the size of an embedding: what the first layer reads at
place i (Coconut, arXiv 2412.06769). M and the change of s begin at zero.

One latent needs the hidden state before it, so a row is computed one latent after the other, or as here by Jacobi
iteration (arXiv 2506.18582): all latents at once from the last pass's hidden states, as many passes as there are
latents in a segment. Packing, masks and meshes stay those of the plain forward pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import reshard

from maverick_jax import parameters
from maverick_jax.config import ModelConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.norm import rms_normalize
from maverick_jax.ops.linear import linear
from maverick_jax.ops.row_split import earlier
from maverick_jax.ops.stream import stream_spec
from maverick_jax.param import build, stored
from maverick_jax.sharding import ShardingRules

Forward = Callable[[jax.Array], jax.Array]
"""What the first layer reads [B, T, D] -> hidden states after the final norm."""


class LatentFeedback(nnx.Module):
    """From hidden states to what the first layer reads at latent places."""

    matrix: nnx.Param
    """M [D, D]: zeros at first, the identity of the feedback."""
    gain: nnx.Param
    """[1]: zero at first. s is (1 + gain) times the root mean square of the embedding table."""

    def __init__(self, config: ModelConfig, rules: ShardingRules, *, rngs: nnx.Rngs):
        self.config, self.rules = config, rules
        build(self, parameters.latent(config), config, rules, rngs)

    @jax.named_scope("latent")
    def __call__(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
        """Hidden states after the final norm [B, T, D], and the embedding table [V, D] -> the inputs of latents that
        follow them, [B, T, D]."""
        mapped = hidden + linear(hidden, *stored(self.matrix, self.rules, hidden.dtype))
        size = jax.lax.stop_gradient(jnp.sqrt(jnp.mean(jnp.square(table.astype(jnp.float32)))))
        scale = size * (1.0 + self.gain[...].astype(jnp.float32))
        normal = rms_normalize(mapped, self.config.rms_norm_eps).astype(jnp.float32)
        return (normal * scale[None, None, :]).astype(hidden.dtype)

    def filled(self, x: jax.Array, inputs: Inputs, table: jax.Array, forward: Forward) -> jax.Array:
        """What the first layer reads, with latents: x [B, T, D] are the embeddings of `inputs`, with any value at the
        places of latents, and `forward` is one pass. A latent that begins a segment, which no rendered text has, reads
        zeros."""
        latent, spec = self.config.latent, stream_spec(self.rules, x.shape[1])
        assert latent is not None
        place = lambda of_token: reshard(of_token, spec)[..., None]
        is_latent, goes_on = place(inputs.tokens == latent.token_id), True
        if inputs.segment_ids is not None:
            ids = inputs.segment_ids
            goes_on = place(earlier(ids, self.rules) == ids)
        zeros = jnp.zeros_like(x)

        def again(filled: jax.Array, _: None) -> tuple[jax.Array, None]:
            before = earlier(self(forward(filled), table), self.rules)
            before = reshard(before, jax.typeof(x).sharding.spec)
            return jnp.where(is_latent, jnp.where(goes_on, before, zeros), x), None

        with_gradient = latent.passes_with_gradient
        filled = x
        if without := latent.passes - with_gradient:
            filled = jax.lax.stop_gradient(jax.lax.scan(again, filled, length=without)[0])
        return jax.lax.scan(again, filled, length=with_gradient)[0]
