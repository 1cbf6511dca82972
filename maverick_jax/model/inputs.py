"""What a forward pass reads."""

import dataclasses
from collections.abc import Mapping

import jax

from maverick_jax.ops.row_split import split_rows
from maverick_jax.sharding import ShardingRules

ROUTES = "routes"
"""Name of the field with the experts that tokens went to before."""
LOOPS = "loops"
"""Name of what a training step adds to a microbatch where `model.loops.drawn` says so."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Tokens of B sequences, where they stand, and the images among them. `Maverick.logits` says what each means."""

    tokens: jax.Array
    """int32[B, T]; it and the next two are split over devices as `RowSplit` says."""
    positions: jax.Array | None = None
    """int32[B, T]; None: each document's own count."""
    segment_ids: jax.Array | None = None
    """int32[B, T]; None: one document a row."""
    marks: jax.Array | None = None
    """uint8[B, T], split as the tokens: what reasoning heads see (`maverick_jax.reasoning.Mark`); None: nothing."""
    tiles: jax.Array | None = None
    """[B, M, C, S, S]: tiles of each sequence's images in reading order, then padding; uint8, or normalized and float.
    None: no images. See `maverick_jax.model.tiles`."""
    loops: jax.Array | None = None
    """int32[]: how often the periods of `model.loops` run, at most as often as it says; None: as it says."""
    routes: jax.Array | None = None
    """int16[B, T, L, k], split as the tokens: the experts that each of the L layers with experts uses, best first, as
    `Maverick.routed` found them; None: their routers choose. Scores are always the routers' own. No effect on
    padding."""
    in_cells: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether no attention chunk of a document lies in two blocks of `RowSplit`, so that layers with local attention
    need no keys of other devices. It is promised, not checked; `train.batches` checks it."""

    @classmethod
    def of(cls, batch: Mapping[str, jax.Array]) -> "Inputs":
        """The inputs among the fields of a batch, as `train.batches` makes it: `tiles` only where it holds
        images, `marks` only where the model has reasoning heads, `routes` only where an objective replays them."""
        tokens, places = batch["tokens"], (batch["positions"], batch["segment_ids"])
        more = (batch.get(name) for name in ("marks", "tiles", LOOPS, ROUTES))
        return cls(tokens, *places, *more, in_cells=True)

    def split(self, rules: ShardingRules) -> "Inputs":
        """These inputs, given in the order of rows, in that of devices (`RowSplit`), in which the model reads them."""
        arrays = (self.tokens, self.positions, self.segment_ids, self.marks)
        rows = (None if x is None else split_rows(x, rules) for x in arrays)
        routes = None if self.routes is None else split_rows(self.routes, rules)
        return Inputs(*rows, tiles=self.tiles, loops=self.loops, routes=routes, in_cells=self.in_cells)


jax.tree_util.register_dataclass(Inputs)
