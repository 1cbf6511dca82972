"""What the experts compute, obvious and slow, and what decides which kernel computes it.

M rows, D model, F hidden, E experts.
"""

import dataclasses

import jax
import jax.numpy as jnp


def grouped_swiglu_reference(x, w_in, w_out, expert) -> jax.Array:
    """The slow twin: applies every expert to every row and picks the right result. Arguments as `grouped_swiglu`."""
    hidden = jnp.einsum("MD,EDGF->EMGF", x, w_in)
    out = jnp.einsum("EMF,EFD->EMD", jax.nn.silu(hidden[:, :, 0]) * hidden[:, :, 1], w_out)
    mine = expert[None, :] == jnp.arange(w_in.shape[0])[:, None]
    return jnp.sum(jnp.where(mine[:, :, None], out, 0), axis=0)


@dataclasses.dataclass(frozen=True)
class GroupedCase:
    """Shapes on one device, and dtypes."""

    rows: int
    experts: int
    model: int
    hidden: int
    dtype: str
    """Of rows and weights; of both, if they differ."""

    @classmethod
    def of(cls, x, w_in) -> "GroupedCase":
        (E, D, _, F), dtypes = w_in.shape, dict.fromkeys((x.dtype.name, w_in.dtype.name))
        return cls(x.shape[0], E, D, F, " x ".join(dtypes))

    def __str__(self) -> str:
        experts = "1 expert" if self.experts == 1 else f"{self.experts} experts"
        return f"{self.rows:,} rows of {self.model:,}, {experts} of {self.hidden:,}, {self.dtype}"
