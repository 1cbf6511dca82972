"""Finds the pictures that records name: in a folder, in the archive of the record, or in the record itself.

Nothing is fetched from a network, and no path leads out of the folder.
"""

import base64
import binascii
import hashlib
import pathlib
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from data.pictures.sample import Picture, SampleProblem
from maverick_jax.images.decode import MAX_BYTES

MAX_NAME = 4_096
"""Longest path of a picture, in characters."""
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{1,15}:")
_DATA = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[\w-]+)*;base64,", re.ASCII)
_ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp")


class Shelf:
    """The pictures that the records of one file may show."""

    def __init__(self, folder: pathlib.Path, members: Mapping[str, Picture] | None = None):
        """`folder`: the only folder that paths may lead into. `members`: pictures beside the record, by name; a name
        that is not among them is looked for in the folder."""
        self.folder, self.members = folder.resolve(), members or {}

    def find(self, value: Any, where: str) -> Picture:
        """The picture that a record shows by a path, a data URI, bytes, or an object with `bytes` or `path`. `where`
        names its place in the record. Raises SampleProblem."""
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
            return self.find(path if data is None else data, where)
        if isinstance(value, bytes):
            return in_memory(value, where)
        if not isinstance(value, str) or not value:
            raise SampleProblem("record", f"{where}: expected a path, a data URI or bytes, got {type(value).__name__}")
        if value[:5].lower() == "data:":
            return in_memory(_decoded(value, where), where)
        return self.members[value] if value in self.members else self._in_folder(value, where)

    def at_address(self, url: Any, where: str) -> Picture:
        """The local copy of the picture at `url`: a file of the folder that is named after the address, in which all
        characters but letters, digits and `_.-~` are written as %XX, or after its SHA-256, SHA-1 or MD5 in hexadecimal.
        Its name may end in .jpg, .jpeg, .png or .webp."""
        if not isinstance(url, str) or _SCHEME.match(url) is None or url[:5].lower() == "data:":
            return self.find(url, where)
        digests = [hashlib.new(name, url.encode(errors="replace"), usedforsecurity=False).hexdigest()
                   for name in ("sha256", "sha1", "md5")]  # fmt: skip
        quoted = urllib.parse.quote(url, safe="", errors="replace")
        for stem in (*digests, *([quoted] if len(quoted) < 250 else [])):
            for ending in _ENDINGS:
                if (path := self.folder / f"{stem}{ending}").is_file():
                    return _at(path, f"{where}: {url:.200}")
        raise SampleProblem("missing", f"{where}: {url:.200}: {self.folder} has no copy of it: expected a file named "
                                       f"{digests[0]}, the SHA-256 of the address, with or without .jpg")  # fmt: skip

    def _in_folder(self, name: str, where: str) -> Picture:
        if _SCHEME.match(name):
            raise SampleProblem("remote", f"{where}: {name:.200}: an address; pictures are not fetched: download it, "
                                          "and name it by a path")  # fmt: skip
        if len(name) > MAX_NAME or "\0" in name:
            raise SampleProblem("record", f"{where}: {name[:80]!r}: not a path")
        try:
            path = (self.folder / name).resolve()
            inside, there = path.is_relative_to(self.folder), path.is_file()
        except (OSError, ValueError, RuntimeError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise SampleProblem("missing", f"{where}: {name[:200]!r}: {why}") from None
        if not inside:
            said = f"{name[:200]!r} leads out of {self.folder}; expected a path inside it (`folder` sets another one)"
            raise SampleProblem("outside", f"{where}: {said}")
        if not there:
            raise SampleProblem("missing", f"{where}: {name[:200]!r}: no such file in {self.folder}")
        return _at(path, f"{where}: {name:.200}")


def in_memory(data: bytes, where: str) -> Picture:
    """The picture with these encoded bytes."""
    return Picture(where, lambda: data)


def _at(path: pathlib.Path, where: str) -> Picture:
    def read() -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        except OSError as error:
            raise SampleProblem("missing", f"{where}: cannot be read: {error.strerror or error}") from None

    return Picture(where, read)


def _decoded(uri: str, where: str) -> bytes:
    """The bytes in a data URI with base64, with or without padding, also of its variant for addresses."""
    found = _DATA.match(uri[:200])
    if found is None:
        raise SampleProblem("encoding", f"{where}: {uri[:60]!r}: expected `data:image/...;base64,` and base64")
    return from_base64(uri[found.end() :], where)


def from_base64(text: str, where: str) -> bytes:
    """Raises SampleProblem for text that is not base64 or too long for a picture."""
    if len(text) > MAX_BYTES * 3 // 2:
        raise SampleProblem(
            "picture", f"{where}: {len(text):,} characters of base64; expected at most {MAX_BYTES:,} bytes"
        )
    plain = "".join(text.split()).translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleProblem("encoding", f"{where}: not base64: {error}") from None
