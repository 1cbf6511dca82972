"""The key that clients send with each request. It is never written to a log, and never an argument of a command."""

import hmac
import os
import pathlib
import secrets
import stat

from maverick_jax.errors import InputError

VARIABLE = "MAVERICK_SERVE_KEY"
LEAST, MOST = 16, 512
"""Characters of a key."""


def key_of(path: pathlib.Path) -> str:
    """The key in the environment variable MAVERICK_SERVE_KEY, or else in the file, which is created with a new key of
    256 bits if it is absent. Raises InputError for a file that others can read, and for a key that is too short."""
    if given := os.environ.get(VARIABLE):
        return _checked(given, VARIABLE)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return _created(path)
    except OSError as error:
        raise InputError(f"key file {path}: cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.geteuid():
            raise InputError(f"key file {path}: others may read it; expected a file of your own with mode 600")
        content = os.read(descriptor, 2 * MOST)
    finally:
        os.close(descriptor)
    return _checked(content.decode("utf-8", "replace").strip(), f"key file {path}")


def _created(path: pathlib.Path) -> str:
    key = secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InputError(f"key file {path}: cannot be created: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{key}\n")
    return key


def _checked(key: str, where: str) -> str:
    if not LEAST <= len(key) <= MOST or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{where}: expected a key of {LEAST} to {MOST} printable ASCII characters without spaces")
    return key


def same(given: bytes, key: str) -> bool:
    """Whether the keys are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(_digest(given), _digest(key.encode()))


def _digest(key: bytes) -> bytes:
    return hmac.digest(b"maverick serve", key, "sha256")
