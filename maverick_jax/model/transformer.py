"""The Llama 4 model: embedding of tokens and images, a scan over periods of layers, the tail, norm, output matrix."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec, reshard

from maverick_jax import parameters
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.model.attention import Positions
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.latent import LatentFeedback
from maverick_jax.model.layers import Layer, Period, Seen, Taps
from maverick_jax.model.loops import through_periods
from maverick_jax.model.moe import RouterStats
from maverick_jax.model.norm import rms_norm
from maverick_jax.model.periods import by_stages, through_stages
from maverick_jax.model.routes import RoutesByLayer
from maverick_jax.model.tiles import encoder_of, flattened, fuse, tiles_by_row, traced_tiles_by_row
from maverick_jax.model.vision import VisionTower
from maverick_jax.ops.lookup import lookup
from maverick_jax.ops.row_split import row_split, whole_rows
from maverick_jax.ops.stages import num_stages
from maverick_jax.ops.stream import gather_tokens, stream_spec
from maverick_jax.param import build, stored, weight
from maverick_jax.sharding import ShardingRules, axes_tuple, single_device_mesh, size_of
from maverick_jax.stack import PERIODS, TAIL, LayerAddress

NO_TAPS = Taps()
NO_MESH = "Maverick: no mesh is set"


class Tapped(NamedTuple):
    """The result of `Maverick.tapped`."""

    hidden: jax.Array
    """Hidden states after the final norm, [B, T, D] of the residual stream in the compute dtype."""
    stats: RouterStats | None
    """Router statistics, one row per MoE layer; None for a dense model."""
    layers: tuple[jax.Array, ...]
    """Outputs of the layers `Taps.hidden`, in that order, [B, T, D] each, before any norm."""
    routers: tuple[jax.Array, ...]
    """Router logits of the layers `Taps.router`, in that order, float32[B, T, E] each."""


class Maverick(nnx.Module):
    """A Llama 4 model of any depth, with or without image encoder. `Maverick.init` builds one on a mesh. Call it under
    `jax.set_mesh`; only `logits` also works outside."""

    embed: nnx.Param
    norm: nnx.Param
    head: nnx.Param

    def __init__(self, config: ModelConfig, rules: ShardingRules | None = None, *, rngs: nnx.Rngs):
        if jax.sharding.get_abstract_mesh().empty:
            raise InputError(f"{NO_MESH}; use Maverick.init(config), or build it under jax.set_mesh(mesh)")
        rules = rules or ShardingRules()
        self.config, self.rules = config, rules
        build(self, parameters.embedding(config), config, rules, rngs)
        if config.stack.num_periods:
            keys = jax.random.split(rngs.params(), config.num_periods)
            period = lambda key: Period(config, config.period, rules, rngs=nnx.Rngs(params=key))
            self.periods = jax.vmap(period)(by_stages(keys))
        if config.stack.tail:
            self.tail = Period(config, config.tail, rules, rngs=rngs)
        build(self, parameters.loops(config), config, rules, rngs)
        build(self, parameters.output(config), config, rules, rngs)
        if config.latent:
            self.latent = LatentFeedback(config, rules, rngs=rngs)
        if config.vision:
            self.vision = VisionTower(config, rules, rngs=rngs)

    @classmethod
    def init(
        cls, config: ModelConfig, seed: int = 0, *, mesh: Mesh | None = None, rules: ShardingRules | None = None
    ) -> "Maverick":
        """A model with initial parameters from `seed`, each device creating its shards. `mesh`: default one device."""
        with jax.set_mesh(mesh or single_device_mesh()):
            return jax.jit(lambda: cls(config, rules, rngs=nnx.Rngs(seed)))()

    def hidden(self, inputs: Inputs) -> tuple[jax.Array, RouterStats | None]:
        """Hidden states after the final norm, [B, T, D] in the compute dtype, split as the residual stream, and the
        routers' stats, one row per MoE layer (None for a dense model)."""
        found = self.tapped(inputs)
        return found.hidden, found.stats

    def tapped(self, inputs: Inputs, taps: Taps = NO_TAPS) -> Tapped:
        """As `hidden`, with the insides of the layers `taps` (from 0 over the whole depth). A tapped layer costs its
        output once for every period, because a scan keeps the same of all."""
        forward = self.through(inputs)
        x = self.embed_inputs(inputs)
        if self.config.latent and self.config.latent.passes:
            x = self.latent.filled(x, inputs, self.embed[...], lambda x: forward(x).hidden)
        return forward(x, taps)

    def routed(self, inputs: Inputs) -> tuple[jax.Array, RouterStats | None, jax.Array]:
        """As `hidden`, and the experts that the routers chose, int16[B, T, L, k], as `Inputs.routes` replays them."""
        layers = self.config.moe_layers
        found = self.tapped(inputs, Taps(router=layers))
        chosen = [self.layer(i).moe.choose(logits) for i, logits in zip(layers, found.routers, strict=True)]
        by_layer = [jnp.stack(experts, axis=-1) for experts in chosen]
        return found.hidden, found.stats, jnp.stack(by_layer, axis=2).astype(jnp.int16)

    def through(self, inputs: Inputs) -> Callable[..., Tapped]:
        """A function of what the first layer reads, [B, T, D], and of taps: the layers and the final norm over the
        tokens of `inputs`, which are read for their places alone."""
        if jax.sharding.get_abstract_mesh().empty:
            raise InputError(f"{NO_MESH}; call the model under jax.set_mesh(mesh), or its `logits` outside of jax.jit")
        placed = Positions.of(self.config, inputs, self.rules)
        spec = stream_spec(self.rules, inputs.tokens.shape[1])
        real = None if inputs.segment_ids is None else reshard(inputs.segment_ids > 0, spec)
        routes = RoutesByLayer.of(self.config, inputs.routes, spec)
        return lambda x, taps=NO_TAPS: self._layers(x, placed, real, taps, inputs.loops, routes)

    def _layers(
        self,
        x: jax.Array,
        placed: Positions,
        real: jax.Array | None,
        taps: Taps,
        loops: jax.Array | None,
        routes: RoutesByLayer | None,
    ) -> Tapped:
        stack, seen = self.config.stack, {}
        if stack.num_periods:
            inside = taps.within(stack, PERIODS)
            if routes is not None:
                given = lambda x, here: here[0](x, placed, real, inside, here[1])
                x, seen[PERIODS] = jax.lax.scan(given, x, (self.periods, routes.periods))
            elif num_stages() > 1:
                x, seen[PERIODS] = through_stages(self.periods, x, placed, real, inside, self.rules)
            else:
                once = lambda x, period: period(x, placed, real, inside)
                if self.config.repeats:
                    x, seen[PERIODS] = through_periods(self, once, x, loops)
                else:
                    x, seen[PERIODS] = jax.lax.scan(once, x, self.periods)
        if stack.tail:
            of_tail = None if routes is None else routes.tail
            x, seen[TAIL] = self.tail(x, placed, real, taps.within(stack, TAIL), of_tail)
        of = lambda name, i: _of_layer({run: getattr(found, name) for run, found in seen.items()}, stack.place(i))
        with jax.named_scope("norm"):
            x = rms_norm(x, self.norm[...], self.config.rms_norm_eps)
        return Tapped(
            x,
            _all_stats(seen.get(PERIODS), seen.get(TAIL)),
            tuple(of("hidden", i) for i in taps.hidden),
            tuple(of("router", i) for i in taps.router),
        )

    def logits(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        pixel_values: jax.Array | None = None,
        marks: jax.Array | None = None,
    ) -> jax.Array:
        """Next-token logits float32[B, T, V] of tokens int32[B, T].

        segment_ids int32[B, T]: 0 is padding, segments count from 1, and attention never crosses segments. positions
        int32[B, T] restart in each segment; rotary angles, chunks and temperature follow from them. The default of both
        is one segment per row. marks int[B, T]: what reasoning heads see (`maverick_jax.reasoning.Mark`); default
        nothing. pixel_values float[N, C, S, S]: the tiles of all images in reading order; the k-th
        `<|patch|>` token of the batch, read row by row, gets the k-th row of their features. Inside traced code each
        sequence encodes all N tiles, because nobody knows which are its own.

        Outside of traced code, raises InputError if shapes do not match, if tokens are not integers, if there are none,
        if a token is not in the vocabulary, if the mesh's batch axes do not divide B or its length axes T, and if
        tokens and tiles do not match.
        """
        if isinstance(self.embed[...], jax.core.Tracer):
            tiles = traced_tiles_by_row(self.config, tokens, pixel_values)
            return _logits(self, Inputs(tokens, positions, segment_ids, marks, tiles))
        mesh = self.embed[...].sharding.mesh
        tiles = tiles_by_row(self.config, tokens, pixel_values)
        places = [None if x is None else _whole(x) for x in (tokens, positions, segment_ids, marks)]
        self._require_batch(*places)
        with jax.set_mesh(mesh):
            tiles = None if tiles is None else jax.device_put(tiles, self.rules("batch", None, None, None, None))
            return _jitted_logits(self, Inputs(*map(self._place, places), tiles=tiles))

    def layer(self, index: int) -> Layer:
        """One layer by itself; `index` counts from 0 over the whole depth."""
        slot, at = self.config.stack.place(index)
        run = getattr(self, slot.run)
        return (run if at is None else jax.tree.map(lambda leaf: leaf[at], run)).layers[slot.number]

    @jax.named_scope("head")
    def output_weight(self) -> jax.Array:
        """The output matrix [D, V], cast and gathered for the matrix product."""
        return weight(self.head, self.rules, self.config.compute_dtype)

    def stored_output_weight(self) -> jax.Array:
        """The output matrix [D, V] as it is stored, for losses, which gather it and scatter its gradient."""
        return stored(self.head, self.rules, self.config.compute_dtype)[0]

    def _require_batch(self, tokens: jax.Array, *others: jax.Array | None) -> None:
        if tokens.ndim != 2 or any(x is not None and x.shape != tokens.shape for x in others):
            shapes = ", ".join(str(x.shape) for x in (tokens, *others) if x is not None)
            raise InputError(
                f"tokens, positions, segment_ids and marks have shapes {shapes}; expected one shape [B, T]"
            )
        if not tokens.size:
            raise InputError(f"tokens: shape {tokens.shape} has no token; expected at least one")
        V = self.config.vocab_size
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < V:
            raise InputError(
                f"tokens: {int(tokens.min())} to {int(tokens.max())}; expected 0 to {V - 1}, the vocabulary"
            )
        for i, (what, logical) in enumerate((("sequences", "batch"), ("tokens a sequence", "length"))):
            groups = size_of(dict(self.embed[...].sharding.mesh.shape), getattr(self.rules, logical))
            if tokens.shape[i] % groups:
                raise InputError(f"tokens: {tokens.shape[i]} {what}; expected a multiple of {groups}, the devices "
                                 f"along the mesh's {logical} axes")  # fmt: skip

    def _place(self, x: jax.Array | None) -> jax.Array | None:
        return None if x is None else jax.device_put(x, self.rules("batch", "length"))

    @jax.named_scope("embed")
    def embed_inputs(self, inputs: Inputs) -> jax.Array:
        """What the first layer reads, [B, T, D]: rows of the table, and of images where `<|patch|>` stands."""
        x = self.embed_tokens(inputs.tokens)
        if inputs.tiles is None:
            return x
        is_image = reshard(inputs.tokens == encoder_of(self.config).image_token_index, self.rules("batch", "length"))
        with jax.named_scope("vision"):
            features = self.vision(flattened(inputs.tiles, self.rules))
        return fuse(x, is_image, features, self.rules)

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """Token embeddings [B, T, D] of the residual stream. The embedding table is sharded by columns: each device
        looks up its columns for all tokens of its group, and all-to-alls exchange columns for tokens, so the table is
        never sent."""
        rules, table = self.rules, axes_tuple(self.rules.table)
        own = lambda axes: tuple(a for a in table if a in axes_tuple(axes)) or None
        batch, length = (tuple(a for a in axes_tuple(x) if a not in table) or None for x in (rules.batch, rules.length))
        ids = reshard(tokens, PartitionSpec(batch, length))
        columns = lookup(PartitionSpec(batch, length, rules.table), self.config.compute_dtype, self.embed[...], ids)
        rest = tuple(a for a in table if a not in axes_tuple(rules.length)) or None
        columns = reshard(columns, PartitionSpec(batch, rules.length, rest))
        stream = stream_spec(rules, tokens.shape[1], "residual")
        # axes that split no tokens: an all-to-all where they split the stream's positions, an all-gather elsewhere
        columns = reshard(columns, PartitionSpec(batch, stream[1], own(rules.batch)))
        return reshard(columns, stream)


def _all_stats(scanned: Seen | None, rest: Seen | None) -> RouterStats | None:
    """Router statistics of the periods and of the tail, one row per MoE layer."""
    stats = []
    if scanned is not None and scanned.stats is not None:
        stats.append(jax.tree.map(lambda s: s.reshape(-1, *s.shape[2:]), scanned.stats))
    if rest is not None and rest.stats is not None:
        stats.append(rest.stats)
    return jax.tree.map(lambda *s: jnp.concatenate(s), *stats) if stats else None


def _whole(x: jax.Array) -> jax.Array:
    """As int32. Raises InputError for other than whole numbers, which a cast would round."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise InputError(f"tokens, positions, segment_ids and marks are whole numbers; got {x.dtype}")
    return x.astype(jnp.int32)


def _of_layer(seen: dict[str, dict[int, jax.Array]], place: LayerAddress) -> jax.Array:
    """The value of the layer at `place`, from the values of `periods` and `tail`."""
    found = seen[place.slot.run][place.slot.number]
    return found if place.index is None else found[place.index]


def _logits(model: Maverick, inputs: Inputs) -> jax.Array:
    """Logits of inputs in the order of rows, in that order."""
    hidden, _ = model.hidden(inputs.split(model.rules))
    shared = row_split(hidden.shape[1], model.rules).ways > 1
    hidden = (whole_rows if shared else gather_tokens)(hidden, model.rules)
    with jax.named_scope("head"):
        return jnp.einsum("BTD,DV->BTV", hidden, model.output_weight()).astype(jnp.float32)


_jitted_logits = jax.jit(_logits)
