"""Opening a picture that may be anything: bounded in bytes, pixels, frames and time, and one error for what is none."""

import os
import pathlib
from io import BytesIO

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from maverick_jax.errors import InputError

MAX_BYTES = 64 << 20
MAX_PIXELS = 1 << 26
"""Width times height; a 64-megapixel camera passes. Decoded and laid on white, such a picture takes 1.1 GB."""
MAX_SIDE = 1 << 16
MAX_SCANS = 128
"""Passes over a JPEG; each costs time for every pixel, however few bytes it has. Cameras and encoders make about 10."""
FORMATS = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP"}
"""First bytes of the formats that are read; nothing else reaches a decoder."""
OTHERS = {b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"BM": "BMP", b"<svg": "SVG", b"<?xml": "XML or SVG",
          b"%PDF": "PDF", b"PK\3\4": "ZIP", b"8BPS": "Photoshop", b"\0\0\1\0": "icon", b"%!PS": "PostScript",
          b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x0a": "JPEG XL"}  # fmt: skip
"""First bytes of what people take for them, for the error."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""


def open_image(source: str | os.PathLike | bytes, *, name: str | None = None) -> Image.Image:
    """The picture in a file (a path) or in memory (bytes): decoded, turned upright by its EXIF orientation, RGB.

    PNG, JPEG or WebP; one frame (of a JPEG with several pictures, as phones make them, the first). Raises InputError,
    which calls the picture `name` (by default its path), for everything else: other formats, animations, truncated or
    damaged data, 16-bit greys, and more than MAX_BYTES, MAX_PIXELS, MAX_SIDE or MAX_SCANS.
    """
    if isinstance(source, bytes):
        name, data = name or "image", source
    else:
        name, data = name or os.fspath(source), _read(pathlib.Path(source))
    try:
        return _decode(data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


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


def _decode(data: bytes) -> Image.Image:
    if len(data) > MAX_BYTES:
        raise InputError(f"expected an image of at most {MAX_BYTES} bytes")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this program, so that damaged images would pass"
        )
    form = _format(data)
    if form == "JPEG" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise InputError(f"a JPEG of {scans} scans; expected at most {MAX_SCANS}")
    try:
        with Image.open(BytesIO(data), formats=(form,)) as image:
            _check_header(image)
            image.verify()  # checksums of a PNG, which loading skips; a verified image cannot be loaded
        with Image.open(BytesIO(data), formats=(form,)) as image:
            turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            image.load()
            rgb = to_rgb(image)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"expected at most {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise InputError(f"begins like a {form} image but is none") from None
    except Exception as error:  # what decoders raise on damaged data has no type in common
        raise InputError(f"not a whole {form} image: {error}") from None
    return rgb if turn is None else rgb.transpose(turn)


def _format(data: bytes) -> str:
    for magic, form in FORMATS.items():
        if data.startswith(magic) and (form != "WEBP" or data[8:12] == b"WEBP"):
            return form
    start = data[:64].lstrip()
    found = [form for magic, form in OTHERS.items() if start.startswith(magic)]
    if data[4:8] == b"ftyp":
        found = ["HEIC, AVIF or a video"]
    is_what = f"is {found[0]}" if found else "begins like none of them" if data else "is empty"
    raise InputError(f"expected a PNG, JPEG or WebP image; this {is_what}")


def _check_header(image: Image.Image) -> None:
    """What is known before anything is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(f"is {width} x {height}; expected at most {MAX_PIXELS} pixels, and {MAX_SIDE} along a side")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise InputError(f"is an animation of {getattr(image, 'n_frames', 'several')} frames; expected a still picture")


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, what is transparent on white. Raises InputError for one channel of more than 8 bits, of which
    Pillow, and so the public processor, turns all but the darkest 256 of 65,536 greys white."""
    if image.mode.startswith(("I", "F")):
        raise InputError("has more than 8 bits a pixel in one channel; expected 8: which of them to drop is not known")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")
