"""What the forward pass of a layer saves for its backward pass, by `ModelConfig.remat`: the names of values that can be
saved, the kinds of layers, and the presets. This is their one declaration: programs name their values with
`jax.ad_checkpoint.checkpoint_name`, `maverick_jax.model.remat` makes policies, and `maverick plan` counts bytes.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import pydantic

from maverick_jax.settings.section import Section

EVERYTHING = "everything"
"""All results of a layer, named or not, but no views of others: no cast or gathered weights."""
INPUT = "input"
"""The residual stream at the layer's input. It is saved in any case; offloaded, it leaves the device."""
QKV = "qkv"
"""Queries, keys and values."""
ATTENTION = "attention"
"""The outputs of attention and the logsumexp of its scores. Every kernel gives the name inside its own rule, so that
none runs forward twice."""
RESIDUAL = "residual"
"""The residual stream between attention and the feed-forward network."""
ROUTER = "router"
"""Logits of the router."""
MLP = "mlp"
"""Hidden units of dense feed-forward networks and of shared experts, before the activation."""
RECEIVED = "received"
"""The rows that a device receives from others for its experts, and where they belong. If they are saved, the backward
pass need not send them again."""

SavedName = Literal["everything", "input", "qkv", "attention", "residual", "router", "mlp", "received"]
Names = tuple[SavedName, ...]


class SavedNames(Section):
    """Names of values, by the kinds of layers that save them. A layer is of several kinds and has the names of all."""

    all_layers: Names = ()
    """Every layer, those of the image encoder too."""
    dense_layers: Names = ()
    """Layers with a dense feed-forward network."""
    moe_layers: Names = ()
    """Layers with a mixture of experts."""
    local_layers: Names = ()
    """Layers with rotary embedding, which attend to their chunk or window."""
    global_layers: Names = ()
    """Layers without rotary embedding, which attend to the whole segment."""
    vision_layers: Names = ()
    """Layers of the image encoder."""

    def of(self, kinds: Iterable[str]) -> frozenset[str]:
        """The names of a layer of these kinds."""
        return frozenset(name for kind in kinds for name in getattr(self, kind))


class Remat(Section):
    """What layers save; the backward pass recomputes the rest."""

    keep: SavedNames = SavedNames()
    """Values that stay in the device's memory."""
    offload: SavedNames = SavedNames()
    """Values that go to the host's memory until the backward pass. Training then begins with a comparison of small
    gradients, and ends at once if they differ from those without offload."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        for kind in SavedNames.model_fields:
            if EVERYTHING in getattr(self.offload, kind):
                raise ValueError(f"offload: {EVERYTHING} has no name of its own; expected names of values")
        return self


class Saved(NamedTuple):
    """What one layer saves."""

    keep: frozenset[str]
    offload: frozenset[str]

    def has(self, name: str) -> bool:
        """Whether the backward pass finds the value, so that it does not compute it again."""
        return name in self.keep or name in self.offload or EVERYTHING in self.keep


Preset = Literal["none", "dots", "attention", "full"]
PRESETS: dict[Preset, Remat] = {
    "none": Remat(keep=SavedNames(all_layers=(EVERYTHING,))),
    "dots": Remat(keep=SavedNames(all_layers=(QKV, ATTENTION, RESIDUAL, ROUTER, MLP, RECEIVED))),
    "attention": Remat(keep=SavedNames(all_layers=(ATTENTION, RECEIVED))),
    "full": Remat(),
}
"""The shorthands of `ModelConfig.remat`, from most saved to least."""


def lists_of(remat: Preset | Remat) -> Remat:
    return remat if isinstance(remat, Remat) else PRESETS[remat]


def saved(remat: Preset | Remat, kinds: Iterable[str]) -> Saved:
    """What a layer of these kinds saves. Raises ValueError for a name that it would both keep and offload."""
    lists, kinds = lists_of(remat), tuple(kinds)
    found = Saved(lists.keep.of(kinds), lists.offload.of(kinds))
    if both := found.keep & found.offload:
        raise ValueError(f"remat: layers of {', '.join(kinds)} would both keep and offload {', '.join(sorted(both))}")
    return found
