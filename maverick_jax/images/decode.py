"""Decode untrusted image files: bounds on bytes, pixels, frames and time, and one error type for bad files."""

import os
import pathlib
from io import BytesIO

import PIL
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

from maverick_jax.errors import InputError

MAX_BYTES = 64 << 20
MAX_PIXELS = 1 << 26
"""Maximum number of pixels, enough for a 64-megapixel camera. Decoding such a picture onto white takes 1.1 GB of
memory."""
MAX_SIDE = 1 << 16
MAX_SCANS = 128
"""Maximum number of scans of a JPEG. Each scan takes time for every pixel, however few bytes it has; encoders make
about 10."""
FORMATS = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP"}
"""First bytes of the supported formats; only these reach a decoder."""
OTHERS = {b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"BM": "BMP", b"<svg": "SVG", b"<?xml": "XML or SVG",
          b"%PDF": "PDF", b"PK\3\4": "ZIP", b"8BPS": "Photoshop", b"\0\0\1\0": "icon", b"%!PS": "PostScript",
          b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x0a": "JPEG XL"}  # fmt: skip
"""First bytes of other formats, which the error names."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that undoes it."""


def open_image(
    source: str | os.PathLike | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode the picture in a file (a path) or in memory (bytes) to RGB, turned upright by its EXIF orientation.

    Reads PNG, JPEG and WebP with one frame; if a JPEG contains several pictures (as phones write them), it reads the
    first. Raises InputError, which names the picture `name` (by default its path), for other formats, animations,
    truncated or damaged data, 16-bit grayscale, and pictures beyond MAX_BYTES, `max_pixels`, MAX_SIDE or MAX_SCANS.
    """
    if isinstance(source, bytes):
        name, data = name or "image", source
    else:
        name, data = name or os.fspath(source), _read(pathlib.Path(source))
    try:
        return _decode(data, max_pixels)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def decoder_version() -> str:
    """Names and versions of the libraries that decode pictures. Another version may give other pixels."""
    libraries = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "webp", "zlib")}
    return " ".join([f"Pillow {PIL.__version__}", *(f"{name} {version}" for name, version in libraries.items())])


def _read(path: pathlib.Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: expected an image of at most {MAX_BYTES} bytes")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    if len(data) > MAX_BYTES:
        raise InputError(f"expected an image of at most {MAX_BYTES} bytes")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, so damaged images would be accepted; unset it"
        )
    form = _format(data)
    if form == "JPEG" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise InputError(f"a JPEG of {scans} scans; expected at most {MAX_SCANS}")
    try:
        with Image.open(BytesIO(data), formats=(form,)) as image:
            _check_header(image, max_pixels)
            image.verify()  # checks the checksums of a PNG, which load() skips; it leaves the image unusable
        with Image.open(BytesIO(data), formats=(form,)) as image:
            turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            image.load()
            rgb = to_rgb(image)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"expected at most {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise InputError(f"begins like a {form} image but is not one") from None
    except Exception as error:  # decoders raise errors of many types for damaged data
        raise InputError(f"damaged or truncated {form} image: {error}") from None
    return rgb if turn is None else rgb.transpose(turn)


def _format(data: bytes) -> str:
    for magic, form in FORMATS.items():
        if data.startswith(magic) and (form != "WEBP" or data[8:12] == b"WEBP"):
            return form
    start = data[:64].lstrip()
    found = [form for magic, form in OTHERS.items() if start.startswith(magic)]
    if data[4:8] == b"ftyp":
        found = ["HEIC, AVIF or a video"]
    finding = f"is {found[0]}" if found else "has another format" if data else "is empty"
    raise InputError(f"expected a PNG, JPEG or WebP image; this {finding}")


def _check_header(image: Image.Image, max_pixels: int) -> None:
    """Check size and number of frames, which are known before decoding. Raises InputError."""
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise InputError(f"is {width} x {height}; expected at most {max_pixels} pixels, and {MAX_SIDE} along a side")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise InputError(f"is an animation of {getattr(image, 'n_frames', 'several')} frames; expected a still picture")


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, composited onto white. Raises InputError for more than 8 bits per channel: Pillow, and hence
    the public processor, would turn all but the darkest 256 of 65,536 gray levels white."""
    if image.mode.startswith(("I", "F")):
        raise InputError("has more than 8 bits per channel; expected 8 (convert it first: the value range is unknown)")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")
