"""Decoding images: supported formats, conversion to RGB, and refusal of malformed files."""

import contextlib
import math
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from maverick_jax.errors import InputError
from maverick_jax.images import decode, open_image
from tests.helpers.image_cases import MALFORMED, PICTURES, encoded, many_scans, noise
from tests.parity.image_oracle import ROOT


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_opened_from_files_and_from_memory(form, tmp_path):
    options = {} if form == "JPEG" else {"lossless": True}
    data = encoded(noise(60, 40), form, **options)
    (tmp_path / "picture").write_bytes(data)
    found = [open_image(data), open_image(tmp_path / "picture"), open_image(str(tmp_path / "picture"))]
    assert all(image.mode == "RGB" and image.size == (60, 40) for image in found)
    assert len({image.tobytes() for image in found}) == 1
    error = np.abs(np.asarray(found[0], int) - np.asarray(noise(60, 40), int)).mean()
    assert error < 30 if form == "JPEG" else error == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "P_transparent", "RGBA", "L_transparent", "RGB_transparent"])
def test_transparency_is_laid_on_white(mode):
    image = PICTURES[mode]()
    opened = np.asarray(open_image(encoded(image)))
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    expected = rgba[..., :3] * rgba[..., 3:] / 255 + 255 - rgba[..., 3:]
    assert np.abs(opened - expected).max() <= 1
    has_holes = mode in ("LA", "RGBA") or "transparent" in mode
    assert has_holes == bool((rgba[..., 3] < 255).any())


def test_the_color_behind_a_clear_pixel_does_not_show():
    image = Image.new("RGBA", (30, 20), (255, 0, 0, 0))
    assert np.asarray(open_image(encoded(image))).min() == 255


@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned_upright(orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16], upright[8:, :16], upright[8:, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # Row and column that each orientation stores first, by the EXIF standard.
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }.get(orientation, upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(data)), upright)


def test_of_a_jpeg_with_several_pictures_the_first_is_read():
    first, other = noise(64, 48), noise(48, 64)
    data = encoded(first, "MPO", save_all=True, append_images=[other])
    assert open_image(data).tobytes() == open_image(encoded(first, "JPEG")).tobytes()


def test_data_after_the_image_is_ignored():
    for form in ("PNG", "JPEG"):
        data = encoded(noise(20, 20), form)
        assert open_image(data + b"PK\3\4<script>").tobytes() == open_image(data).tobytes()
    assert open_image(many_scans(20)).size == (64, 64)


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_images_are_refused(case):
    data, message = MALFORMED[case]
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    started = time.process_time()
    with pytest.raises(InputError, match=f"^cat.jpg: .*({message})") as caught:
        open_image(data, name="cat.jpg")
    assert time.process_time() - started < 2
    assert "object at 0x" not in str(caught.value) and "\n" not in str(caught.value)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def refuse_all() -> None:
    """Print the increase of the process's peak memory, in bytes, from refusing every malformed image."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, (data, _) in MALFORMED.items():
        try:
            open_image(data, name=name)
        except InputError:
            continue
        raise AssertionError(f"{name} was opened")
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def test_malformed_images_take_little_memory():
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "from tests.maverick_jax.images.test_decode import refuse_all; refuse_all()",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 20


def test_missing_special_and_huge_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"absent\.png: no such file"):
        open_image(tmp_path / "absent.png")
    with pytest.raises(InputError, match="no such file"):
        open_image(tmp_path)
    with pytest.raises(InputError, match=r"no such file|cannot be read"):
        open_image("a\0b")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="no such file"):
        open_image(tmp_path / "fifo")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(decode.MAX_BYTES * 1000)
    with pytest.raises(InputError, match=r"huge\.png: expected an image of at most 67108864 bytes"):
        open_image(tmp_path / "huge.png")
    monkeypatch.setattr(decode, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="expected an image of at most 100 bytes"):
        open_image(bytes(101))


def test_load_truncated_images_is_an_error(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES is set"):
        open_image(encoded(noise(4, 4)))


@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.data())
@settings(max_examples=150)
def test_any_damage_is_refused_or_harmless(form, data):
    whole = encoded(noise(24, 20), form)
    damage = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damage) - 1))
        damage[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with contextlib.suppress(InputError):
        image = open_image(bytes(damage))
        assert image.mode == "RGB" and math.prod(image.size) <= decode.MAX_PIXELS
