"""Objects under a URL: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or a folder, through TensorStore's key-value stores.

Credentials come from the environment and never from a config: for S3 `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`
(and `AWS_SESSION_TOKEN`), else what AWS' own chain finds, such as the role of the machine; `AWS_REGION`, and
`AWS_ENDPOINT_URL` for a server that is not Amazon's. For Google's, its application default credentials.

Orbax writes to Google's storage and to folders only: for an `s3` path it asks for another package, and its arrays would
go to a folder called `s3:`. So checkpoints are written to a folder and copied here, file by file.
"""

import os
import pathlib
import re
import urllib.parse
from typing import Any

import tensorstore

from maverick_jax.errors import InputError, MaverickError

MAX_OBJECT = 5 * 10**9
"""Most bytes of an object that S3 takes in one request, as TensorStore sends it."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}")
_KEY = re.compile(r"[A-Za-z0-9!_.*'()=,+-]+(/[A-Za-z0-9!_.*'()=,+-]+)*")
_DRIVERS = {"s3": "s3", "gs": "gcs"}
_REFUSED = ("NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT", "FAILED_PRECONDITION")
_RETRIES = {"max_retries": 8, "initial_delay": "200ms", "max_delay": "8s"}


class StoreUnreachable(MaverickError):
    """An object store did not answer, or failed. Nothing that was saved is changed. Try again later."""

    exit_code = 75


class StoreRefused(InputError):
    """An object store refused a request: there is no such bucket, or the credentials do not allow it."""


class ObjectStore:
    """The objects whose keys begin with the prefix of a URL. Keys here are without it."""

    def __init__(self, url: str):
        """Raises InputError unless `url` is one of those above. No request is sent."""
        self.url = url
        self._kv = _opened(url)

    def read(self, key: str, part: slice | None = None) -> bytes | None:
        """The value, or the bytes of it that `part` names, none if it is shorter; None if there is no such object."""
        found = self._kv.read(key) if part is None else self._kv.read(key, byte_range=part)
        try:
            result = self._result(found, f"{key} could not be read")
        except StoreUnreachable as error:
            if str(error.__cause__).startswith("OUT_OF_RANGE"):
                return b""
            raise
        return result.value if result.state == "value" else None

    def write(self, key: str, value: bytes) -> None:
        """Replaces the object as a whole."""
        self._result(self._kv.write(key, value), f"{key} could not be written")

    def replace(self, key: str, old: bytes | None, new: bytes) -> bool:
        """Writes `new` unless the object is another than `old` (None: absent). S3 is asked before the write, not with
        it, so that two writers at the same instant may both be told yes; the later wins."""
        found = self._result(self._kv.read(key), f"{key} could not be read")
        if (found.value if found.state == "value" else None) != old:
            return False
        written = self._kv.write(key, new, if_equal=found.stamp.generation)
        return bool(self._result(written, f"{key} could not be written").generation)

    def listed(self, prefix: str = "") -> list[str]:
        """The keys that begin with `prefix`, sorted."""
        found = self._kv.list(_range(prefix)) if prefix else self._kv.list()
        return sorted(key.decode(errors="replace") for key in self._result(found, "its objects could not be listed"))

    def delete(self, key: str) -> None:
        self._result(self._kv.write(key, None), f"{key} could not be deleted")

    def delete_under(self, prefix: str) -> None:
        """Deletes the objects whose keys begin with `prefix`, which is not empty."""
        self._result(self._kv.delete_range(_range(prefix)), f"objects under {prefix} could not be deleted")

    def _result(self, future: Any, failed: str) -> Any:
        try:
            return future.result()
        except (ValueError, OSError, RuntimeError) as error:
            text = str(error).split("[source locations")[0].split(" [http_response_body")[0].strip()
            kind = StoreRefused if text.startswith(_REFUSED) else StoreUnreachable
            raise kind(f"{self.url}: {failed}: {text[:400]}") from error


def check_url(url: str) -> str:
    """`url`, without a slash at its end. Raises ValueError with what is expected instead."""
    url = url.rstrip("/")
    if "://" not in url:
        if not url:
            raise ValueError("expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a folder, found nothing")
        return url
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme not in _DRIVERS or not _BUCKET.fullmatch(bucket) or not is_key(prefix):
        raise ValueError(f"expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a folder, found {url!r:.200}")
    return url


def is_key(key: str) -> bool:
    """Whether `key` is made of plain names, separated by slashes, so that it stays inside its prefix, or, as a path,
    inside its folder."""
    return bool(_KEY.fullmatch(key)) and not {".", ".."} & set(key.split("/"))


def _opened(url: str) -> tensorstore.KvStore:
    try:
        url = check_url(url)
        return tensorstore.KvStore.open(_spec(url)).result()
    except (ValueError, OSError) as error:
        raise InputError(f"{url}: {str(error).split('[source locations')[0].strip()}") from error


def _spec(url: str) -> dict[str, Any]:
    scheme, _, rest = url.partition("://")
    if not rest:
        return {"driver": "file", "path": f"{pathlib.Path(url).expanduser().absolute()}/"}
    bucket, _, prefix = rest.partition("/")
    spec = {"driver": _DRIVERS[scheme], "bucket": bucket, "path": f"{prefix}/"}
    if scheme == "gs":
        return spec | {"context": {"gcs_request_retries": _RETRIES}}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        host = urllib.parse.urlsplit(endpoint)
        if host.scheme not in ("http", "https") or not host.hostname or host.username or host.query:
            raise ValueError("AWS_ENDPOINT_URL: expected http(s)://HOST[:PORT]")
        spec |= {"endpoint": endpoint.rstrip("/"), "aws_region": region or "us-east-1"}
    elif region:
        spec |= {"aws_region": region}
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        spec |= {"aws_credentials": {"type": "environment"}}
    return spec | {"context": {"s3_request_retries": _RETRIES}}


def _range(prefix: str) -> tensorstore.KvStore.KeyRange:
    return tensorstore.KvStore.KeyRange(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))
