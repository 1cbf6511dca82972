"""Generates text: samples the next token until the text ends."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from maverick_jax.errors import InputError
from maverick_jax.images import ImageConfig, ImageTokenIds, batch_tiles, image_tokens, preprocess
from maverick_jax.inference.cache import decode, prefill
from maverick_jax.inference.decoding import TextDecoder
from maverick_jax.inference.sampling import PLAIN, Sampling
from maverick_jax.model.tiles import encoder_of, tiles_by_row
from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import axes_tuple
from maverick_jax.text import Tokenizer

TURN_ENDS = ("<|eot|>", "<|eom|>")
"""Control tokens that end an answer in a conversation, in addition to the tokenizer's end of text."""
SMALLEST_BUCKET = 32
"""Lengths are rounded up to a power of two, at least this one, so that few programs are compiled."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to continue, and its settings."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    max_tokens: int
    """Maximum number of tokens to generate."""
    sampling: Sampling = PLAIN
    seed: int = 0
    pixel_values: np.ndarray | None = None
    """float[N, C, S, S]: tiles of the images whose `<|patch|>` tokens are in the prompt, in order."""


def generate(
    model: Maverick,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    images: Sequence[Image.Image] = (),
) -> str:
    """The model's continuation of `images` and `prompt` (ordinary text), up to the end of the text and at most
    `max_tokens` tokens.

    Equal arguments give equal text. Raises InputError for arguments out of range, and for images if the model has no
    image encoder or the tokenizer no image tokens.
    """
    sampling = Sampling(temperature, top_k, top_p)
    prompt_ids, pixel_values = prompt_ids_of(model, tokenizer, prompt, images)
    return "".join(stream(model, tokenizer, Request(prompt_ids, max_tokens, sampling, seed, pixel_values)))


def prompt_ids_of(
    model: Maverick, tokenizer: Tokenizer, prompt: str, images: Sequence[Image.Image] = ()
) -> tuple[list[int], np.ndarray | None]:
    """The tokens of `images` and then `prompt` (ordinary text), from the start of a text on; and the images' tiles,
    float[N, C, S, S]. Raises InputError as `generate` does."""
    shown, pixel_values = _shown(model, tokenizer, images)
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [*start, *shown, *tokenizer.encode(prompt)], pixel_values


def _shown(model: Maverick, tokenizer: Tokenizer, images: Sequence[Image.Image]) -> tuple[list[int], np.ndarray | None]:
    """The tokens of `images` and their tiles float[N, C, S, S]."""
    if not images:
        return [], None
    config, ids = ImageConfig.of(encoder_of(model.config)), ImageTokenIds.of(tokenizer)
    tiles = [preprocess(image, config) for image in images]
    return [i for t in tiles for i in image_tokens(t.grid, ids, config.patches_per_tile)], batch_tiles(tiles)


def stream(model: Maverick, tokenizer: Tokenizer, request: Request) -> Iterator[str]:
    """Like `generate`, from token ids. Yields pieces of text while they are generated; no piece ends inside a
    character."""
    stops = stop_ids(tokenizer)
    ids = stream_ids(model, tokenizer, request)
    return text_of(tokenizer, (token for token in ids if token not in stops))


def stream_ids(model: Maverick, tokenizer: Tokenizer, request: Request) -> Iterator[int]:
    """Yields the tokens of `stream`, including the token that ends the text."""
    if tokenizer.vocab_size > model.config.vocab_size:
        sizes = f"{tokenizer.vocab_size} ids, the model {model.config.vocab_size}"
        raise InputError(f"the tokenizer has {sizes}; expected the tokenizer of this model")
    stops = stop_ids(tokenizer)
    r = request
    for tokens in sample_tokens(model, [r.prompt], r.max_tokens, r.sampling, r.seed, r.pixel_values):
        yield int(tokens[0])
        if int(tokens[0]) in stops:
            return


def text_of(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Decodes tokens as they come. No piece of text ends inside a character."""
    decoder = TextDecoder(tokenizer)
    for token in tokens:
        if text := decoder.add(token):
            yield text
    if text := decoder.end():
        yield text


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end the text."""
    ends = [tokenizer.eos_id, *(tokenizer.controls.get(name) for name in TURN_ENDS)]
    return frozenset(token for token in ends if token is not None)


def sample_tokens(
    model: Maverick,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    pixel_values: np.ndarray | None = None,
    first: int = 0,
) -> Iterator[np.ndarray]:
    """Yields the next token of each prompt, int32[len(prompts)], `max_tokens` times. The caller may stop earlier.

    Prompts are token ids, of any lengths except 0. A row's tokens depend on its prompt, its images, the seed, and its
    index counted from `first`. pixel_values: the tiles of all prompts' images in reading order; see `Maverick.logits`.
    """
    if max_tokens < 0 or not prompts or not all(prompts):
        raise InputError("expected max_tokens of 0 or more, and prompts of one token or more")
    if extras := sampling.extras():
        raise InputError(f"{extras[0]}: only an engine applies it; expected its default here")
    if any(not 0 <= token < model.config.vocab_size for prompt in prompts for token in prompt):
        raise InputError(f"a prompt has token ids outside 0..{model.config.vocab_size - 1}, the model's vocabulary")
    mesh = model.embed[...].sharding.mesh
    own = tiles_by_row(model.config, [*map(np.asarray, prompts)], pixel_values)
    with jax.set_mesh(mesh):
        tokens, lengths = _padded(model, prompts)
        tiles = None if own is None else _placed(model, own[np.arange(len(tokens)) % len(prompts)])
        logits, cache = prefill(model, tokens, lengths, bucket(max(map(len, prompts)) + max_tokens), tiles)
        positions = lengths
        for step in range(max_tokens):
            chosen = choose(logits, sampling, seed, step, first)
            yield np.asarray(chosen)[: len(prompts)]
            if step + 1 < max_tokens:
                logits, cache = decode(model, chosen, positions, cache)
                positions = positions + 1


def choose(
    logits: jax.Array, sampling: Sampling, seed: int | jax.Array, step: int | jax.Array, first: int | jax.Array = 0
) -> jax.Array:
    """Samples one token per row, int32[B], from logits float32[B, V]. Row i uses the key of (seed, step, first + i).
    In a traced program, the three numbers may be uint32[]."""
    numbers = (x if isinstance(x, jax.Array) else np.uint32(x % 2**32) for x in (seed, step, first))
    return _choose(logits, sampling.temperature, sampling.top_k, sampling.top_p, *numbers)


@jax.jit
def _choose(logits, temperature, top_k, top_p, seed, step, first) -> jax.Array:
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = _restrict(logits / jnp.where(temperature > 0, temperature, 1.0), top_k, top_p)
    key = jax.random.fold_in(jax.random.key(seed), step)
    rows = first + jnp.arange(logits.shape[0], dtype=jnp.uint32)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(rows)
    drawn = jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
    return jnp.where(temperature > 0, drawn, greedy)


def _restrict(logits: jax.Array, top_k, top_p) -> jax.Array:
    """Logits [B, V] with -inf for the tokens that top_k and top_p exclude. Tokens with equal logits all stay."""
    V = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    allowed = (jnp.arange(V) < jnp.where(top_k > 0, top_k, V))[None, :] & ((before < top_p) | (top_p >= 1))
    least = jnp.min(jnp.where(allowed, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def bucket(length: int) -> int:
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


def _padded(model: Maverick, prompts: Sequence[Sequence[int]]) -> tuple[jax.Array, jax.Array]:
    """Tokens int32[B, T] and lengths int32[B] on all devices. Rows are repeated until the batch axes divide B."""
    mesh = model.embed[...].sharding.mesh
    groups = int(np.prod([mesh.shape[axis] for axis in axes_tuple(model.rules.batch)]))
    rows = [prompts[i % len(prompts)] for i in range(-(-len(prompts) // groups) * groups)]
    tokens = np.zeros((len(rows), bucket(max(map(len, rows)))), np.int32)
    for row, prompt in zip(tokens, rows, strict=True):
        row[: len(prompt)] = prompt
    everywhere = jax.NamedSharding(mesh, jax.P())
    return jax.device_put((tokens, np.array([len(row) for row in rows], np.int32)), everywhere)


def _placed(model: Maverick, tiles: np.ndarray) -> jax.Array:
    """Tiles [B, M, C, S, S] on the devices of their rows."""
    return jax.device_put(tiles, model.rules("batch", None, None, None, None))
