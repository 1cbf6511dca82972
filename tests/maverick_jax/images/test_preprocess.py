"""Images: pixels equal to the public processor's, token layout, buckets, processor files."""

import base64
import hashlib
import json
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maverick_jax.errors import InputError
from maverick_jax.huggingface.processor_files import write_processor
from maverick_jax.huggingface.tokenizer_files import write_hugging_face
from maverick_jax.images import (
    ImageConfig,
    ImageTiles,
    ImageTokenIds,
    batch_tiles,
    bucket_of,
    image_tokens,
    num_image_tokens,
    preprocess,
)
from maverick_jax.images.canvas import choose_grid, fitted_size
from maverick_jax.images.resize import resize
from maverick_jax.text import load_tokenizer
from tests.helpers.image_cases import CASES, PICTURES, encoded, noise
from tests.parity import image_oracle

CONFIG = ImageConfig()
GOLDEN = json.loads(image_oracle.GOLDEN.read_text())
BYTES = load_tokenizer("bytes")
IDS = ImageTokenIds.of(BYTES)


def oracle(*arguments: str, given: str = "") -> str:
    """Output of the public processor's process; skips the test if torchvision is missing."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.parity.image_oracle", *arguments],
        input=given,
        capture_output=True,
        text=True,
        cwd=image_oracle.ROOT,
    )
    if done.returncode == InputError.exit_code:
        pytest.skip("no torchvision: see benchmarks/torchvision_import.py")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# ---- pixels


@pytest.mark.parametrize("case", CASES)
def test_pixels_equal_the_public_processors(case):
    make, config = CASES[case]
    tiles, public = preprocess(make(), config), GOLDEN["pictures"][case]
    assert list(tiles.grid) == public["grid"]
    assert image_oracle.digest(tiles.pixel_values) == public["sha256"]


@pytest.mark.oracles
@pytest.mark.slow
def test_the_golden_file_equals_the_public_processors_output():
    assert json.loads(oracle()) | {"versions": GOLDEN["versions"]} == GOLDEN


@pytest.mark.parametrize("resize_to_max_canvas", [False, True])
def test_grids_and_fitted_sizes_equal_the_public_processors(resize_to_max_canvas):
    config, found = ImageConfig(resize_to_max_canvas=resize_to_max_canvas), []
    for size in image_oracle.random_sizes():
        grid = choose_grid(size, config)
        found.append([*grid, *fitted_size(size, grid, config)])
    digest = hashlib.sha256(np.array(found, np.int64).tobytes()).hexdigest()
    assert digest == GOLDEN["sizes"][str(resize_to_max_canvas)]


def obvious_grid(size, config: ImageConfig):
    """The best grid, found by trying every one."""
    ranked = []
    for height in range(1, config.max_tiles + 1):
        for width in range(1, config.max_tiles // height + 1):
            canvas = (height * config.tile_size, width * config.tile_size)
            scale = min(np.float32(there) / np.float32(here) for there, here in zip(canvas, size, strict=True))
            enlarges = scale >= 1
            first = scale if enlarges and not config.resize_to_max_canvas else -scale
            ranked.append((not enlarges, first, height * width, (height, width)))
    return min(ranked)[-1]


@pytest.mark.parametrize(
    "config",
    [CONFIG, ImageConfig(resize_to_max_canvas=True), ImageConfig(tile_size=28, max_tiles=7), ImageConfig(max_tiles=1)],
)
def test_grid_equals_the_best_of_all_grids(config):
    for size in image_oracle.random_sizes()[::5]:
        grid = choose_grid(size, config)
        assert grid == obvious_grid(size, config)
        height, width = fitted_size(size, grid, config)
        assert 1 <= height <= grid[0] * config.tile_size and 1 <= width <= grid[1] * config.tile_size
        fills_limit = []
        for side, fitted, tiles in zip(size, (height, width), grid, strict=True):
            canvas = tiles * config.tile_size
            limit = canvas if config.resize_to_max_canvas else min(canvas, max(side, config.tile_size))
            assert fitted <= limit
            fills_limit.append(fitted == limit)
        assert any(fills_limit)
        # Undistorted, except that sides are rounded down and are at least one pixel.
        assert height == 1 or width == 1 or abs(height / size[0] - width / size[1]) <= 1.01 / min(size)


def obvious_resize(image: np.ndarray, size) -> np.ndarray:
    """uint8[H, W] -> uint8[*size], one output at a time in Python integers."""
    for axis, after in ((1, size[1]), (0, size[0])):
        before = image.shape[axis]
        if before == after:
            continue
        scale = before / after
        reach = max(scale, 1.0)
        lists = []
        for i in range(after):
            center = scale * (i + 0.5)
            first, end = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), before)
            weights = [max(1 - abs((j - center + 0.5) / reach), 0.0) for j in range(first, end)]
            total = 0.0
            for weight in weights:
                total += weight
            lists.append((first, [weight / total for weight in weights]))
        largest, point = max(max(weights) for _, weights in lists), 0
        while point < 22 and int(0.5 + largest * 2 ** (point + 1)) < 2**15:
            point += 1
        source, out = np.moveaxis(image, axis, 0).astype(object), []
        for first, weights in lists:
            whole = [int(0.5 + weight * 2**point) for weight in weights]
            out.append(sum(w * source[first + j] for j, w in enumerate(whole)) + 2 ** (point - 1) >> point)
        image = np.moveaxis(np.minimum(np.stack(out), 255).astype(np.uint8), 0, axis)
    return image


def random_resizes(number: int, largest: int):
    rng = np.random.default_rng(number)
    for _ in range(number):
        height, width, new_height, new_width = np.exp(rng.uniform(0, np.log(largest), 4)).astype(int)
        image = rng.integers(0, 256, (height, width), np.uint8)
        if rng.random() < 0.3:
            image = image // 128 * 255  # black and white: the largest sums
        yield image, (int(new_height), int(new_width))


def test_resize_equals_the_reference():
    for image, size in random_resizes(120, 60):
        np.testing.assert_array_equal(resize(image, size), obvious_resize(image, size))


@pytest.mark.oracles
def test_resize_equals_torch():
    import torch

    for image, size in random_resizes(400, 1500):
        if size == (1, 1):
            continue  # torch fails an internal assertion
        there = torch.from_numpy(image)[None, None].expand(1, 3, -1, -1)
        there = torch.nn.functional.interpolate(there, size, mode="bilinear", antialias=True, align_corners=False)
        np.testing.assert_array_equal(resize(image, size), there[0, 2].numpy())


def test_a_uniform_image_stays_uniform():
    for value in (0, 1, 254, 255):
        for width in (2, 335, 337, 673, 1000, 6000, 65_536):
            assert (resize(np.full((50, width), value, np.uint8), (336, 336)) == value).all()


def plain_float32_tiles(image: Image.Image, config: ImageConfig) -> np.ndarray:
    """Meta's preprocessing with Pillow, one tile at a time."""
    size, side = (image.height, image.width), config.tile_size
    down, across = obvious_grid(size, config)
    height, width = fitted_size(size, (down, across), config)
    canvas = Image.new("RGB", (across * side, down * side))
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (0, 0))
    corners = [(x * side, y * side) for y in range(down) for x in range(across)]
    tiles = [canvas.crop((x, y, x + side, y + side)) for x, y in corners]
    if len(tiles) > 1:
        tiles.append(image.resize((side, side), Image.Resampling.BILINEAR))
    values = np.stack([np.asarray(tile, np.float32).transpose(2, 0, 1) for tile in tiles])
    return (values / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


@pytest.mark.parametrize("case", ["1x1", "7x3", "336x336", "500x700", "4000x300", "300x4000"])
def test_float32_pixels_equal_pillows(case):
    image, config = PICTURES[case](), ImageConfig(normalization="float32")
    tiles = preprocess(image, config)
    assert tiles.pixel_values.dtype == np.float32
    np.testing.assert_array_equal(tiles.pixel_values, plain_float32_tiles(image, config))
    # The two differ by at most one level from resizing and three roundings to bfloat16.
    other = preprocess(image, CONFIG)
    assert other.grid == tiles.grid
    difference = np.abs(other.pixel_values - tiles.pixel_values)
    assert 0 < difference.max() < 2 / 255 + 0.01


def test_tiles_are_in_reading_order_and_the_overview_is_last():
    # A picture of four uniform quarters: each tile has the color of its quarter, the overview has all four.
    colors = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]]
    image = Image.new("RGB", (672, 672))
    for y in range(2):
        for x in range(2):
            image.paste(colors[y][x], (x * 336, y * 336, x * 336 + 336, y * 336 + 336))
    tiles = preprocess(image, CONFIG)
    assert tiles.grid == (2, 2) and tiles.pixel_values.shape == (5, 3, 336, 336)
    for tile, color in zip(tiles.pixel_values, [c for row in colors for c in row], strict=False):
        np.testing.assert_allclose(tile.mean((1, 2)), np.array(color) / 127.5 - 1, atol=0.01)
    corners = tiles.pixel_values[4][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_allclose(corners.T, [np.array(c) / 127.5 - 1 for row in colors for c in row], atol=0.01)


def test_the_canvas_beyond_the_picture_is_black():
    tiles = preprocess(Image.new("RGB", (400, 100), "white"), CONFIG)
    assert tiles.grid == (1, 2)
    first, second, overview = tiles.pixel_values
    assert (first[:, :100] == 1).all() and (first[:, 100:] == -1).all()
    assert (second[:, :100, : 400 - 336] == 1).all() and (second[:, :, 400 - 336 :] == -1).all()
    assert (overview == 1).all()


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_more_than_eight_bits_per_channel_are_refused(mode):
    with pytest.raises(InputError, match="more than 8 bits"):
        preprocess(Image.new(mode, (4, 4)), CONFIG)


# ---- tokens


@pytest.mark.parametrize("patches", [1, 9, 144])
def test_image_tokens_have_the_documented_order_and_number(patches):
    for down in range(1, 17):
        for across in range(1, 16 // down + 1):
            row = "<|tile_x_separator|>".join(["P"] * across) + "<|tile_y_separator|>"
            rows = row * down if down * across > 1 else ""
            text = f"<|image_start|>{rows}<|image|>P<|image_end|>".replace("P", "<|patch|>" * patches)
            ids = image_tokens((down, across), IDS, patches)
            assert BYTES.decode(ids, controls=True) == text
            assert len(ids) == num_image_tokens((down, across), patches)
            tiles = down * across + (down * across > 1)
            assert ids.count(IDS.patch) == tiles * patches


def test_tokens_of_the_documented_grids():
    assert (num_image_tokens((1, 1), 144), num_image_tokens((4, 4), 144)) == (147, 2467)
    assert CONFIG.patches_per_tile == 144


def test_a_tokenizer_without_image_tokens_is_refused():
    some = {"<|image|>": 7, "<|patch|>": 8, "<|image_start|>": 9, "<|image_end|>": 10}
    text_only: Any = types.SimpleNamespace(name="tokenizer.json", controls=some)
    with pytest.raises(InputError, match=r"tokenizer.json has no <\|tile_x_separator\|>, <\|tile_y_separator\|>; exp"):
        ImageTokenIds.of(text_only)


def test_patches_per_tile():
    assert ImageConfig(tile_size=24, patch_size=4).patches_per_tile == 9
    assert ImageConfig(tile_size=28, patch_size=14, pixel_shuffle_ratio=1.0).patches_per_tile == 4
    with pytest.raises(ValueError, match=r"tile_size \(30\) must be a multiple of patch_size \(14\)"):
        ImageConfig(tile_size=30)
    with pytest.raises(ValueError, match="must be 1/n for an n that divides the 3 patches"):
        ImageConfig(tile_size=42)
    with pytest.raises(ValueError, match="must be 1/n"):
        ImageConfig(pixel_shuffle_ratio=0.7)


# ---- batches


def some_tiles(number: int, value: float) -> ImageTiles:
    return ImageTiles(np.full((number, 3, 4, 4), value, np.float32), (1, number))


def test_a_batch_holds_the_tiles_of_each_image_in_order():
    batch = batch_tiles([some_tiles(5, 1), some_tiles(1, 2), some_tiles(3, 3)])
    assert batch.shape == (9, 3, 4, 4) and batch.dtype == np.float32
    assert batch[:, 0, 0, 0].tolist() == [1] * 5 + [2] + [3] * 3
    padded = batch_tiles([some_tiles(5, 1), some_tiles(1, 2)], bucket=bucket_of(7))
    assert padded[:, 0, 0, 0].tolist() == [1] * 5 + [2] + [0] * 2
    with pytest.raises(InputError, match=r"2 image\(s\) have 6 tiles; expected at most 4"):
        batch_tiles([some_tiles(5, 1), some_tiles(1, 2)], bucket=4)


def test_buckets_are_few_and_at_most_a_third_empty():
    buckets = [bucket_of(n) for n in range(1, 4097)]
    assert all(n <= bucket and (bucket - n) * 3 < bucket for n, bucket in enumerate(buckets, start=1))
    assert len(set(buckets)) == 24 and buckets == sorted(buckets)
    assert [bucket_of(n) for n in (1, 2, 3, 4, 5, 6, 7, 9, 13, 17, 25, 33)] == [1, 2, 3, 4, 6, 6, 8, 12, 16, 24, 32, 48]
    with pytest.raises(ValueError, match="at least 1"):
        bucket_of(0)


# ---- processor files


def test_processor_files_hold_these_fields(tmp_path):
    write_processor(ImageConfig(tile_size=28, max_tiles=5, resize_to_max_canvas=True), tmp_path)
    files = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert files == {
        "processor_config.json": {
            "processor_class": "Llama4Processor",
            "patch_size": 14,
            "pixel_shuffle_ratio": 0.5,
            "fake_image_token": "<|image|>",
            "image_token": "<|image|>",
        },
        "preprocessor_config.json": {
            "processor_class": "Llama4Processor",
            "image_processor_type": "Llama4ImageProcessorFast",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": 28, "width": 28},
            "resample": 2,
            "max_patches": 5,
            "resize_to_max_canvas": True,
            "do_rescale": True,
            "rescale_factor": 0.00392156862745098,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    }


@pytest.mark.oracles
def test_the_public_processor_with_our_files_gives_our_ids_and_pixels(tmp_path):
    config = ImageConfig(tile_size=56, max_tiles=4)
    write_processor(config, tmp_path)
    write_hugging_face(BYTES, tmp_path)
    one, wide, tall = noise(40, 30), noise(150, 50, "RGBA"), noise(90, 700)
    prompts = [
        ("What is <|image|>?", [one]),
        ("<|image|><|image|> and <|image|>", [wide, one, tall]),
        ("two alike: <|image|>\n<|image|>", [wide, wide]),
    ]
    asked = [
        {"text": text, "images": [base64.b64encode(encoded(i)).decode() for i in images]} for text, images in prompts
    ]
    answers = json.loads(oracle(str(tmp_path), given=json.dumps(asked)))
    for (text, images), answer in zip(prompts, answers, strict=True):
        tiles = [preprocess(image, config) for image in images]
        first, *rest = text.split("<|image|>")
        ids = BYTES.encode(first)
        for part, image in zip(rest, tiles, strict=True):
            ids += [*image_tokens(image.grid, IDS, config.patches_per_tile), *BYTES.encode(part)]
        assert answer["ids"] == ids
        assert answer["sha256"] == image_oracle.digest(batch_tiles(tiles))
