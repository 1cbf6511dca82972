"""Pictures of a request: data URIs, and files of one folder if it was given. Never anything from a network."""

import base64
import binascii
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.serve.errors import ApiError, refused
from launch.serve.limits import RequestLimits
from maverick_jax.errors import InputError
from maverick_jax.images import ImageConfig, ImageTokenIds, cut_tiles, image_tokens, open_image
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Image

_DATA = re.compile(r"data:image/(?:png|jpeg|jpg|webp);base64,", re.IGNORECASE)


class PictureReader:
    """Turns the pictures of one request into tokens and tiles, and counts their pixels."""

    def __init__(
        self, config: ImageConfig | None, tokenizer: Tokenizer, root: pathlib.Path | None, limits: RequestLimits
    ):
        """config: None for a model without image encoder. root: the folder whose files `file:` URLs may name."""
        self.config, self.limits = config, limits
        self.ids = ImageTokenIds.of(tokenizer) if config else None
        self.root = root.resolve() if root else None

    def read(self, urls: Sequence[tuple[str, str]]) -> tuple[list[Image], np.ndarray | None]:
        """The tokens of pictures and their tiles uint8[N, C, S, S], given (where, URL) of each. Raises ApiError."""
        if not urls:
            return [], None
        if self.config is None or self.ids is None:
            raise refused(urls[0][0], "this model reads no pictures")
        if len(urls) > self.limits.pictures:
            raise refused("messages", f"{len(urls)} pictures; expected at most {self.limits.pictures}")
        images, tiles, pixels = [], [], 0
        for where, url in urls:
            try:
                most = min(self.limits.picture_pixels, self.limits.pictures_pixels - pixels)
                picture = open_image(self._content(where, url), name="picture", max_pixels=most)
                pixels += picture.width * picture.height
                cut, grid = cut_tiles(picture, self.config)
            except InputError as error:
                raise refused(where, str(error)) from None
            images.append(Image(image_tokens(grid, self.ids, self.config.patches_per_tile)))
            tiles.append(cut)
        return images, np.concatenate(tiles)

    def _content(self, where: str, url: str) -> bytes:
        if found := _DATA.match(url):
            try:
                return base64.b64decode(url[found.end() :], validate=True)
            except (binascii.Error, ValueError):
                raise refused(where, "not base64") from None
        if url.startswith("file:") and self.root:
            return self._file(where, url)
        raise refused(where, "expected data:image/png, jpeg or webp;base64,...; no picture is fetched from a network")

    def _file(self, where: str, url: str) -> bytes:
        """A file under the root, after links in its path have been followed."""
        assert self.root is not None
        missing = refused(where, "no such file under the folder of pictures")
        try:
            path = (self.root / url.removeprefix("file:").removeprefix("//").lstrip("/")).resolve()
            if not path.is_relative_to(self.root) or not path.is_file():
                raise missing
            return path.read_bytes() if path.stat().st_size <= self.limits.body else b""
        except (OSError, ValueError):
            raise missing from None


def urls_of(message: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """(where, URL) of each picture in a message of the chat API, in order. Raises ApiError for malformed parts."""
    content = message.get("content")
    parts = enumerate(content if isinstance(content, list) else ())
    shown = [(j, part) for j, part in parts if isinstance(part, dict) and part.get("type") in ("image_url", "image")]
    return [(f"{where}.content.{j}", _url(part, f"{where}.content.{j}")) for j, part in shown]


def _url(part: Mapping[str, Any], where: str) -> str:
    inner = part.get("image_url")
    url = inner.get("url") if isinstance(inner, dict) else inner
    unknown = set(inner) - {"url", "detail"} if isinstance(inner, dict) else set()
    if part["type"] != "image_url" or not isinstance(url, str) or unknown:
        raise ApiError(400, f"{where}: expected {{type: image_url, image_url: {{url: data:...}}}}", param=where)
    return url
