"""Initializes a model from another one. Weights are read in blocks, straight to the devices that store them.

**Upcycling.** A mixture of experts that is initialized from a dense layer computes
y = shared(x) + sum_e Expert_e(sigmoid(r_e) x), where the dense network becomes the shared expert. The input weights of
the routed experts are copies of its gate and up weights, each with its own small noise; their output weights are zero,
and the router is random. So y equals the dense layer's output exactly, for any router. In the first update, only the
output weights of experts that got tokens have a gradient; from the second update on, so do input weights and router.

Reasons: sparse upcycling (arXiv 2212.05055), which copies the dense network into the routed experts and has no shared
expert, would not be exact here: the score scales the input of a network that is not homogeneous, and no factor undoes
that. Copies that cancel in pairs would give input weights a gradient one update earlier, but equality only up to
rounding. Equal experts would get equal gradients, hence the noise; arXiv 2502.19261 reports that upcycled experts learn
more if they are partly redrawn. Hidden units beyond the dense width have fresh input weights and zero output weights,
for the same reasons.

**Another vocabulary.** Rows of the embedding table and columns of the output matrix follow their tokens
(`VocabularyMove`). A new token begins as the mean of its pieces. In the output matrix, that alone would take much of
the probability of old tokens, so new columns are lowered: to each, the mean column of ids that no text has is added.
The source has learned never to predict those, so the loss on old tokens hardly changes.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.placement import place
from maverick_jax.checkpoint.readers import LayerSlice, Reader
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.initialization.derived_readers import OfTokens, Padded, SameForEach, Stacked, Zeros
from maverick_jax.initialization.layer_map import Start, findings
from maverick_jax.model.transformer import Maverick
from maverick_jax.model_source import open_source
from maverick_jax.parameters import ROUTER_BIAS, by_name
from maverick_jax.stack import Stack
from maverick_jax.text import load_tokenizer
from maverick_jax.text.tokenizers.vocabulary_move import VocabularyMove

log = logging.getLogger(__name__)

NOISE = 0.1
"""Noise on the copies in routed experts, in standard deviations of fresh weights."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The initial value of a parameter: the array that `reader` reads, plus `fresh` times a fresh model's array."""

    reader: Reader
    fresh: np.ndarray
    """float32, with the rank of the parameter. Each axis has the parameter's size, or 1 to broadcast."""


def initial_weights(abstract: Maverick, start: Start, seed: int) -> Maverick:
    """A model with the shapes, dtypes and shardings of `abstract`, initialized as `start` says.

    Values that the source does not determine (routers, routed experts, a loss-free balance bias, reasoning heads and
    the gain of loops) come from a fresh model with `seed` and are equal on every mesh. Raises InputError for a source
    that does not fit or is damaged.
    """
    source = open_source(start.path)
    if found := findings(abstract.config, source.config, start):
        raise InputError("\n".join(f"{key}: {text}" for key, text in found))
    leaves, there, arrays = names.flatten(abstract), by_name(source.config), {}
    if unused := [name for name in there if name.endswith(ROUTER_BIAS) and name not in leaves]:
        log.warning("%s: ignoring balance biases, which this model lacks: %s", start.path, ", ".join(unused[:5]))
    if start.is_copy(abstract.config, source.config):
        arrays = source.load({name: leaf for name, leaf in leaves.items() if name in there})
        origins = {name: _nothing(leaf.shape) for name, leaf in leaves.items() if name not in there}
    else:
        log.info("initializing from %s, layers %s", start.path, ", ".join(map(str, start.sources(abstract.config))))
        source.require_undamaged()
        shapes = {name: leaf.shape for name, leaf in leaves.items()}
        origins = describe(abstract.config, shapes, source.config, readers := source.readers(), start)
        if start.tokenizer is not None:
            origins |= _moved(readers, move_of(abstract.config, source.config, start))
    arrays |= {name: place(leaves[name], origin.reader) for name, origin in origins.items()}
    amounts = {name: origin.fresh for name, origin in origins.items() if origin.fresh.any()}
    drawn = _with_fresh(abstract, {name: arrays.pop(name) for name in amounts}, amounts, seed)
    return names.unflatten(abstract, arrays | drawn)


def _with_fresh(abstract: Maverick, arrays: dict, amounts: dict[str, np.ndarray], seed: int) -> dict[str, jax.Array]:
    """Adds to each array `amounts` times the array of a fresh model. Only the fresh arrays that are used are made."""
    if not arrays:
        return {}

    def add(arrays, amounts, seed):
        model = Maverick(abstract.config, abstract.rules, rngs=nnx.Rngs(params=jax.random.key(seed)))
        fresh = names.flatten(model)
        added = lambda x, amount, new: jnp.where(amount == 0, x, x + amount.astype(x.dtype) * new)
        return {name: added(x, amounts[name], fresh[name]) for name, x in arrays.items()}

    with jax.set_mesh(next(iter(arrays.values())).sharding.mesh):
        return jax.jit(add, donate_argnums=0)(arrays, amounts, np.uint32(seed))


# ---- the origin of each parameter ------------------------------------------------------------------------------------


def describe(
    model: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    source: ModelConfig,
    readers: Mapping[str, Reader],
    start: Start,
) -> dict[str, Origin]:
    """The origin of each parameter of `model`, given its shapes by name and the `readers` of `source`."""
    chosen, stack, found = start.sources(model), model.stack, {}
    for name, shape in shapes.items():
        if (in_layer := stack.find(name)) is None:
            found[name] = _copy(readers[name]) if name in readers else _nothing(shape)
            continue
        slot, rest = in_layer
        of_one = shape[1:] if slot.stacked else shape
        reads = [_layer_reader(source.stack, readers, chosen[layer]) for layer in slot.layers]
        parts = [_part_of_layer(rest, of_one, read) for read in reads]
        found[name] = _stack(parts) if slot.stacked else parts[0]
    return found


def move_of(model: ModelConfig, source: ModelConfig, start: Start) -> VocabularyMove:
    """The move from the tokenizer of the model at `start.path` to `start.tokenizer`, which is logged. Raises InputError
    if a tokenizer cannot be read or does not say which bytes its tokens stand for."""
    assert start.tokenizer is not None
    old, new = load_tokenizer(start.path), load_tokenizer(start.tokenizer)
    move = VocabularyMove.between(old, source.vocab_size, new, model.vocab_size)
    log.info("vocabulary: from that of %s (%s) to %s: %s", start.path, old.name, new.name, move)
    if not len(move.unused):
        log.warning(
            "vocabulary: each id of %s occurs in texts, so new tokens take some of the others' probability", old.name
        )
    return move


def _moved(readers: Mapping[str, Reader], move: VocabularyMove) -> dict[str, Origin]:
    """The origins of embedding table and output matrix: fresh where a token has no pieces, unless it is lowered."""
    nothing, new = move.counts == 0, move.counts != 1
    lowered = new if len(move.unused) else np.zeros_like(new)
    table = OfTokens(readers["embed"], 0, move, np.zeros_like(new))
    head = OfTokens(readers["head"], 1, move, lowered)
    fresh = (nothing & ~lowered).astype(np.float32)
    return {"embed": Origin(table, nothing.astype(np.float32)[:, None]), "head": Origin(head, fresh[None, :])}


def _layer_reader(source: Stack, readers: Mapping[str, Reader], layer: int) -> Callable[[str], Reader | None]:
    """A function from a name in a layer to that parameter's reader in the source's `layer`; None if there is none."""
    slot, index = source.place(layer)

    def read(rest: str) -> Reader | None:
        reader = readers.get(slot.prefix + rest)
        return reader if reader is None or index is None else LayerSlice(reader, index)

    return read


def _part_of_layer(rest: str, shape: tuple[int, ...], read: Callable[[str], Reader | None]) -> Origin:
    """The origin of the parameter `rest` (of `shape`) of a layer that is initialized from the layer that `read` reads.
    See the top of the file."""
    if (same := read(rest)) is not None:
        return _copy(same)
    if rest in ("moe/router", f"moe/{ROUTER_BIAS}") or rest.startswith("reasoning/"):
        return _nothing(shape)
    gate, up, down = (read(f"mlp/{name}") for name in ("gate", "up", "down"))
    assert gate is not None and up is not None and down is not None, rest
    beyond = np.arange(shape[-1]) >= gate.shape[-1]
    match rest:
        case "moe/shared/gate" | "moe/shared/up":
            return Origin(Padded(gate if rest.endswith("gate") else up, shape), _along_last(beyond, len(shape)))
        case "moe/shared/down":
            return _copy(Padded(down, shape))
        case "moe/experts_in":
            copies = SameForEach(shape[0], *(Padded(reader, (shape[1], shape[3])) for reader in (gate, up)))
            return Origin(copies, _along_last(np.where(beyond, 1, NOISE), len(shape)))
        case "moe/experts_out":
            return _copy(Zeros(shape))
    raise ValueError(f"no rule for {rest}")


def _copy(reader: Reader) -> Origin:
    return Origin(reader, np.zeros((1,) * len(reader.shape), np.float32))


def _nothing(shape: tuple[int, ...]) -> Origin:
    return Origin(Zeros(shape), np.ones((1,) * len(shape), np.float32))


def _along_last(amounts: np.ndarray, rank: int) -> np.ndarray:
    return amounts.astype(np.float32).reshape((1,) * (rank - 1) + (-1,))


def _stack(parts: list[Origin]) -> Origin:
    fresh = np.stack(np.broadcast_arrays(*[part.fresh for part in parts]))
    return Origin(Stacked(tuple(part.reader for part in parts)), fresh)
