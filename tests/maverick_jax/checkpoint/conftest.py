"""Places for copies of checkpoints: a folder, and a bucket on a server of this machine."""

import itertools

import pytest

from maverick_jax.checkpoint import object_lease
from tests.helpers.object_server import BUCKET, object_server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def bucket_environment(tmp_path_factory):
    with object_server(tmp_path_factory.mktemp("server")) as environment:
        yield environment


@pytest.fixture
def bucket(bucket_environment, monkeypatch) -> str:
    """The URL of an empty place in a bucket."""
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_lease, "SETTLE", 0.01)
    return f"s3://{BUCKET}/runs/{next(_numbers)}"


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path) -> str:
    """An empty place of each kind."""
    return request.getfixturevalue("bucket") if request.param == "bucket" else str(tmp_path / "place")
