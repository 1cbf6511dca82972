"""Generated pictures for tests, valid and malformed, so that no image files are needed.

Preprocessing is compared on `CASES`; each file of `MALFORMED` must be refused with the given error.
"""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image

from maverick_jax.images import ImageConfig

PNG = b"\x89PNG\r\n\x1a\n"


def noise(width: int, height: int, mode: str = "RGB", *, transparent=None) -> Image.Image:
    """A picture with detail at every scale: a gradient plus noise. `transparent` declares a color transparent."""
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    rng = np.random.default_rng([width, height, channels])
    slope = np.linspace(0, 255, width)[None, :, None] + np.linspace(0, -200, height)[:, None, None]
    pixels = np.clip(slope + rng.normal(0, 60, (height, width, channels)), 0, 255).astype(np.uint8)
    image = Image.frombytes(mode, (width, height), pixels.tobytes())
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def palette(width: int, height: int, *, transparent: bool) -> Image.Image:
    image = noise(width, height).quantize(16)
    if transparent:
        image.info["transparency"] = 3
    return image


SIZES = [
    (1, 1), (1, 2000), (2000, 1), (7, 3), (335, 336), (336, 336), (337, 336), (336, 337), (672, 336), (500, 700),
    (1000, 1000), (1344, 1344), (4000, 300), (300, 4000), (1921, 1081),
]  # fmt: skip
"""(width, height)."""
PICTURES: dict[str, Callable[[], Image.Image]] = {
    **{f"{w}x{h}": lambda w=w, h=h: noise(w, h) for w, h in SIZES},
    **{mode: lambda mode=mode: noise(450, 300, mode) for mode in ("L", "LA", "RGBA", "CMYK")},
    "1": lambda: noise(450, 300).convert("1"),
    "P": lambda: palette(450, 300, transparent=False),
    "P_transparent": lambda: palette(450, 300, transparent=True),
    "L_transparent": lambda: noise(450, 300, "L", transparent=255),
    "RGB_transparent": lambda: noise(450, 300, transparent=(255, 255, 255)),
}
CASES: dict[str, tuple[Callable[[], Image.Image], ImageConfig]] = {
    **{name: (make, ImageConfig()) for name, make in PICTURES.items()},
    **{f"{name}_max_canvas": (PICTURES[name], ImageConfig(resize_to_max_canvas=True)) for name in ("500x700", "7x3")},
    **{
        f"{name}_small_tiles": (PICTURES[name], ImageConfig(tile_size=24, patch_size=4, max_tiles=5))
        for name in ("500x700", "7x3", "4000x300")
    },
}


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    out = BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    check = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG with these chunks between its header and its end."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def idat(size: int) -> bytes:
    return chunk(b"IDAT", zlib.compress(bytes(size), 9))


def jpeg_sized(width: int, height: int) -> bytes:
    """A small JPEG whose header declares another size."""
    data = encoded(noise(16, 16), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def many_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(noise(64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + (scans * data[last:-2]) + data[-2:]


def webp_sized(width: int, height: int) -> bytes:
    """An extended WebP whose canvas declares this size."""
    frame = encoded(noise(16, 16), "WEBP")[12:]
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", len(canvas)) + canvas + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def animated(form: str) -> bytes:
    frames = [noise(20, 20), noise(20, 20).rotate(90)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


def damaged(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


_png, _jpeg, _webp = encoded(noise(64, 48)), encoded(noise(64, 48), "JPEG"), encoded(noise(64, 48), "WEBP")
_FORMAT = "expected a PNG, JPEG or WebP image; this "
_HUGE = r"expected at most 67108864 pixels"
MALFORMED: dict[str, tuple[bytes, str]] = {
    # not an image, or an image of another format
    "empty": (b"", _FORMAT + "is empty"),
    "text": (b"a picture of a cat\n", _FORMAT + "has another format"),
    "pickle": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix", _FORMAT + "has another format"),
    "zeros": (bytes(1000), _FORMAT + "has another format"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", _FORMAT + "is SVG"),
    "xml_entity": (
        b"<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY a SYSTEM 'file:///etc'>]>",
        _FORMAT + "is XML",
    ),
    "gif": (encoded(noise(20, 20).quantize(8), "GIF"), _FORMAT + "is GIF"),
    "animated_gif": (animated("GIF"), _FORMAT + "is GIF"),
    "tiff": (encoded(noise(20, 20), "TIFF"), _FORMAT + "is TIFF"),
    "bmp": (encoded(noise(20, 20), "BMP"), _FORMAT + "is BMP"),
    "icon": (encoded(noise(20, 20), "ICO"), _FORMAT + "is icon"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", _FORMAT + "is PostScript"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0", _FORMAT + "is HEIC"),
    "riff_of_sound": (b"RIFF\x24\0\0\0WAVEfmt ", _FORMAT + "has another format"),
    "polyglot_zip_png": (b"PK\3\4" + _png, _FORMAT + "is ZIP"),
    "polyglot_gif_png": (b"GIF89a" + _png, _FORMAT + "is GIF"),
    "polyglot_pdf_jpeg": (b"%PDF-1.7\n" + _jpeg, _FORMAT + "is PDF"),
    # animations
    "animated_webp": (animated("WEBP"), "animation of 2 frames"),
    "animated_png": (animated("PNG"), "animation of 2 frames"),
    # too large, according to the header
    "png_bomb": (png(30_000, 30_000, idat(100_000), depth=1, color=0), _HUGE),
    "png_bomb_within_pillows_limit": (png(10_000, 10_000, idat(1000), depth=1, color=0), _HUGE),
    "png_barely_too_large": (png(8200, 8200, idat(1000), depth=1, color=0), "is 8200 x 8200; " + _HUGE),
    "png_of_2_31": (png(2**31 - 1, 2**31 - 1, idat(10)), _HUGE),
    "png_long_side": (png(100_000, 1, idat(300_001)), "100000 x 1; expected .* 65536 along a side"),
    "png_no_width": (png(0, 10, idat(10)), "begins like a PNG"),
    "jpeg_bomb": (jpeg_sized(65_500, 65_500), _HUGE),
    "jpeg_no_height": (jpeg_sized(16, 0), "damaged or truncated JPEG|begins like a JPEG"),
    "jpeg_no_width": (jpeg_sized(0, 16), "damaged or truncated JPEG|begins like a JPEG"),
    "webp_bomb": (webp_sized(16_384, 16_384), _HUGE + "|begins like a WEBP"),
    # few pixels that take much time or memory
    "jpeg_of_1000_scans": (many_scans(1000), "a JPEG of 1009 scans; expected at most 128"),
    "png_text_bomb": (
        png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000), 9)), idat(200)),
        "damaged or truncated PNG|begins like a PNG",
    ),
    "png_many_text_bombs": (
        png(8, 8, 90 * chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000), 9)), idat(200)),
        "damaged or truncated PNG|begins like a PNG",
    ),
    # cut off
    "png_magic_only": (PNG, "begins like a PNG image but is not one"),
    "png_header_only": (_png[:33], "damaged or truncated PNG|begins like a PNG"),
    "png_half": (_png[: len(_png) // 2], "damaged or truncated PNG image: Truncated File Read"),
    "png_no_data": (png(8, 8), "damaged or truncated PNG|begins like a PNG"),
    "png_too_little_data": (png(800, 800, idat(100)), "damaged or truncated PNG"),
    "jpeg_magic_only": (b"\xff\xd8\xff", "begins like a JPEG image but is not one"),
    "jpeg_header_only": (_jpeg[:200], "damaged or truncated JPEG|begins like a JPEG"),
    "jpeg_half": (_jpeg[: len(_jpeg) // 2], "damaged or truncated JPEG image: image file is truncated"),
    "webp_half": (_webp[: len(_webp) // 2], "damaged or truncated WEBP|begins like a WEBP"),
    "webp_magic_only": (b"RIFF\x04\0\0\0WEBP", "begins like a WEBP image but is not one"),
    # damaged
    "png_bad_header_crc": (damaged(_png, 29, b"\0\0\0\0"), "damaged or truncated PNG|begins like a PNG"),
    "png_bad_data_crc": (png(8, 8, chunk(b"IDAT", zlib.compress(bytes(200)), crc=0)), "damaged or truncated|begins"),
    "png_bad_stream": (png(8, 8, chunk(b"IDAT", b"not deflated")), "damaged or truncated PNG"),
    "png_bad_depth": (png(8, 8, idat(200), depth=7), "damaged or truncated PNG|begins like a PNG"),
    "png_bad_filter": (png(8, 8, chunk(b"IDAT", zlib.compress(b"\x09" * 200))), "damaged or truncated PNG"),
    "png_endless_chunk": (PNG + struct.pack(">I", 2**31 - 1) + b"IHDR", "damaged or truncated PNG|begins like a PNG"),
    "png_cut_in_its_end": (_png[:-6], "damaged or truncated PNG"),
    "png_other_data_inside": (_png[:33] + _jpeg + _png[33:], "damaged or truncated PNG|begins like a PNG"),
    "jpeg_no_tables": (_jpeg.replace(b"\xff\xdb", b"\xff\xfe"), "damaged or truncated JPEG"),
    "jpeg_no_frame": (_jpeg.replace(b"\xff\xc0", b"\xff\xfe"), "damaged or truncated JPEG|begins like a JPEG"),
    "webp_bad_frame": (damaged(_webp, 20, b"\xff" * 40), "damaged or truncated WEBP|begins like a WEBP"),
    # ambiguous conversion to 8 bits
    "png_16_bit_gray": (
        encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)),
        "more than 8 bits per channel",
    ),
}
