"""Compares our image encoder and its fusion with the text model to the public model, the NumPy twin, and itself on a
mesh."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.errors import InputError
from maverick_jax.network import VisionConfig
from tests.parity.llama4_vision_numpy import MUTATIONS, Llama4Vision
from tests.parity.oracle import (
    MULTIMODAL,
    VISION,
    case,
    config_json,
    exported,
    our_model,
    random_tokens,
    torch_logits,
    variant,
)

TOLERANCE = 1e-4
PATCH, BEGIN, END, IMAGE = VISION.image_token_index, VISION.boi_token_index, VISION.eoi_token_index, 92
TILE = [PATCH] * VISION.tokens_per_tile


def image(tiles: int) -> list[int]:
    """Tokens of an image: a row of tiles and, if there are several, the global view. Separators are plain ids here."""
    if tiles == 1:
        return [BEGIN, IMAGE, *TILE, END]
    return [BEGIN, *(token for _ in range(tiles - 1) for token in (*TILE, 90)), IMAGE, *TILE, END]


PROMPTS = {
    "no_image": [],
    "one_image": [1],
    "one_image_of_many_tiles": [6],
    "three_images": [1, 3, 2],
    "adjacent_images": [2, -1, -3],
}
"""Number of tiles of each image, in order. Negative: no text before the image. Equal sums share a program."""


def prompt(name: str, length: int = 100) -> np.ndarray:
    text = iter(random_tokens(variant(vocab_size=90), 1, length, seed=len(name))[0])
    tokens = [next(text) for _ in range(3)]
    for tiles in PROMPTS[name]:
        tokens += [*([next(text) for _ in range(2)] if tiles > 0 else []), *image(abs(tiles))]
    return np.array([(tokens + list(text))[:length]], np.int32)


def tiles_of(name: str) -> int:
    return sum(map(abs, PROMPTS[name]))


def pixels(count: int, seed: int = 5) -> np.ndarray:
    shape = (count, VISION.num_channels, VISION.image_size, VISION.image_size)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


# ---- the public model ----------------------------------------------------------------------------------------------


@functools.cache
def public_logits(name: str):
    """`torch_logits` of the public model of this case, calculated in float64. In float32 some processors have it 6e-5
    from that."""
    model = copy.deepcopy(case(name).torch).double()
    return lambda tokens, images: torch_logits(model, tokens, images if images is None else images.astype(np.float64))


@pytest.mark.oracles
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("name", MULTIMODAL)
def test_multimodal_logits_equal_the_public_model(name, kind):
    c, tokens, images = case(name), prompt(kind), pixels(tiles_of(kind)) if tiles_of(kind) else None
    assert np.count_nonzero(tokens == PATCH) == tiles_of(kind) * VISION.tokens_per_tile
    ours = c.ours.logits(tokens, pixel_values=images)
    np.testing.assert_allclose(ours, public_logits(name)(tokens, images), atol=TOLERANCE, rtol=0)


@pytest.mark.oracles
def test_images_of_several_sequences_go_where_they_belong():
    """Rows of features are assigned sequence by sequence, so a batch gives the same as its sequences alone."""
    c, kinds = case("maverick_with_images"), ["three_images", "no_image", "one_image"]
    images = [pixels(tiles_of(kind), seed) for seed, kind in enumerate(kinds)]
    batch = c.ours.logits(np.concatenate([prompt(kind) for kind in kinds]), pixel_values=np.concatenate(images))
    for row, (kind, own) in enumerate(zip(kinds, images, strict=True)):
        alone = public_logits("maverick_with_images")(prompt(kind), own if len(own) else None)[0]
        np.testing.assert_allclose(batch[row], alone, atol=TOLERANCE, rtol=0)


@pytest.mark.oracles
def test_gradients_of_the_encoder_equal_the_public_models():
    import torch

    c, tokens, images = case("maverick_with_images"), prompt("three_images"), pixels(6)
    labels = random_tokens(c.config, 1, tokens.shape[1], seed=9)
    c.torch.zero_grad()
    logits = c.torch(torch.from_numpy(tokens.astype(np.int64)), pixel_values=torch.from_numpy(images)).logits
    torch.nn.functional.cross_entropy(logits[0], torch.from_numpy(labels[0].astype(np.int64))).backward()
    theirs = {name: p.grad.numpy() for name, p in c.torch.named_parameters()}

    def loss(model):
        logits = model.logits(jnp.asarray(tokens), pixel_values=jnp.asarray(images))
        one_hot = jax.sharding.reshard(
            jnp.asarray(np.eye(c.config.vocab_size, dtype=np.float32)[labels]), jax.typeof(logits).sharding.spec
        )
        return -jnp.sum(jax.nn.log_softmax(logits) * one_hot) / labels.size

    with jax.set_mesh(c.ours.embed[...].sharding.mesh):
        grads = jax.jit(jax.grad(loss))(c.ours)
    ours = exported({name: np.asarray(g) for name, g in names.flatten(grads).items()})
    vision = [name for name in theirs if not name.startswith("language_model")]
    assert len(vision) == 1 + 10 - 1 + 16 * VISION.num_hidden_layers
    for name in theirs:
        assert np.linalg.norm(ours[name] - theirs[name]) <= 1e-4 * np.linalg.norm(theirs[name]), name


# ---- the twin, and deliberate errors in it -------------------------------------------------------------------------


@functools.cache
def rows() -> tuple[np.ndarray, np.ndarray, dict]:
    """The rows of features of two tiles, the tiles, and the weights under public names."""
    c, images = case("maverick_with_images"), pixels(2)
    with jax.set_mesh(c.ours.embed[...].sharding.mesh):
        ours = jax.jit(lambda model, images: model.vision(images))(c.ours, jnp.asarray(images))
    return np.asarray(ours).reshape(-1, c.config.hidden_size), images, exported(c.parameters)


def twin(*mutations: str) -> np.ndarray:
    _, images, weights = rows()
    vision = config_json(MULTIMODAL["maverick_with_images"])["vision_config"]
    return Llama4Vision(vision, weights, mutations).rows(images)


def test_twin_without_mutation_agrees():
    assert 0.5 < rows()[0].std() < 5
    np.testing.assert_allclose(rows()[0], twin(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_vision_mutation_is_detected(mutation):
    error = np.abs(rows()[0] - twin(mutation)).max()
    assert error > 10 * 2e-5, f"{mutation} moves the features by {error:.1e} only"


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_unmasked_attention_equals_its_slow_twin(platform, monkeypatch):
    """In value and gradient; head by head (on a CPU) and all heads at once."""
    from maverick_jax.ops.attention import unmasked

    def plain(q, k, v):
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) * q.shape[-1] ** -0.5
        return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores), v)

    qkv = jax.random.normal(jax.random.key(0), (3, 2, 7, 3, 4))
    weights = jax.random.normal(jax.random.key(1), (2, 7, 3, 4))
    both = lambda f: jax.value_and_grad(lambda qkv: jnp.sum(f(*qkv) * weights))(qkv)
    expected = both(plain)
    monkeypatch.setattr(unmasked, "traced_platform", lambda: platform)
    for a, b in zip(both(unmasked.attention_unmasked), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_generate_passes_images_to_the_model(tmp_path):
    """`maverick generate --image`: the text depends on the picture, and the picture has the tokens of its tiles."""
    from PIL import Image

    from maverick_jax.config import ModelConfig
    from maverick_jax.images import ImageConfig
    from maverick_jax.inference import generate
    from maverick_jax.text import load_tokenizer
    from tests.parity.oracle import random_parameters, shapes

    config = ModelConfig.from_name("tiny_vision").model_copy(update={"num_hidden_layers": 4})
    assert ImageConfig.of(config.vision).patches_per_tile == config.vision.tokens_per_tile
    model = our_model(config, random_parameters(shapes(config)))
    tokenizer = load_tokenizer("bytes")
    red, stripes = Image.new("RGB", (90, 40), "red"), Image.effect_noise((60, 130), 90)
    write = lambda *images: generate(model, tokenizer, "what is it?", 8, 0, images=images)
    assert len({write(), write(red), write(stripes), write(red, stripes), write(stripes, red)}) == 5
    with pytest.raises(InputError, match="no image encoder"):
        generate(case("maverick").ours, tokenizer, "", images=[red])


# ---- meshes, shapes, refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        {"fsdp": 2, "expert": 2, "tensor": 2},
        {"data": 4, "tensor": 2},
        {"data": 2, "context": 2, "tensor": 2},
    ],
)
def test_every_mesh_gives_the_same_logits(sizes):
    from maverick_jax.sharding import make_mesh

    c, kinds = case("maverick_with_images"), ["three_images", "one_image", "no_image", "adjacent_images"]
    tokens, images = np.concatenate([prompt(kind) for kind in kinds]), pixels(sum(map(tiles_of, kinds)))
    sharded = our_model(c.config, c.parameters, make_mesh(sizes))
    assert not sharded.vision.layers.fc1[...].sharding.is_fully_replicated
    expected = c.ours.logits(tokens, pixel_values=images)
    np.testing.assert_allclose(sharded.logits(tokens, pixel_values=images), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "images", "message"),
    [
        (prompt("one_image"), pixels(2), "2 tiles give 18 rows of features; tokens contain 9 ids 95"),
        (prompt("three_images"), pixels(1), "1 tiles give 9 rows"),
        (prompt("one_image"), pixels(1)[:, :1], r"expected \(tiles, 3, 24, 24\)"),
        (prompt("one_image"), pixels(1)[0], r"expected \(tiles, 3, 24, 24\)"),
    ],
)
def test_images_that_do_not_fit_the_tokens_are_refused(tokens, images, message):
    with pytest.raises(InputError, match=message):
        case("maverick_with_images").ours.logits(tokens, pixel_values=images)


def test_a_text_model_refuses_images():
    with pytest.raises(InputError, match="no image encoder"):
        case("maverick").ours.logits(prompt("one_image"), pixel_values=pixels(1))
    with pytest.raises(InputError, match="no image encoder"):  # also when a caller's program is traced
        jax.eval_shape(case("maverick").ours.logits, prompt("one_image"), pixel_values=pixels(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 36, "intermediate_size": 144}, "multiple of 4 x num_attention_heads"),
        ({"image_size": 26}, "multiple of patch_size"),
        ({"pixel_shuffle_ratio": 0.4}, "must be 1/n"),
        ({"intermediate_size": 64}, "the width of the adapter's input"),
    ],
)
def test_an_encoder_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VisionConfig(**(VISION.model_dump() | changes))
