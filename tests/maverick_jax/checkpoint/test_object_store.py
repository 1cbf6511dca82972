"""Objects in a folder and in a bucket."""

import pytest

from maverick_jax.checkpoint.object_store import ObjectStore, StoreRefused, StoreUnreachable, check_url, is_key
from maverick_jax.errors import InputError


def test_objects_are_written_read_listed_and_deleted(place):
    store = ObjectStore(place)
    assert store.read("1/a") is None and store.listed() == []
    for key, value in {"1/a": b"0123456789", "1/b/c": b"", "10/a": b"x"}.items():
        store.write(key, value)
    assert store.read("1/a") == b"0123456789" and store.read("1/b/c") == b""
    assert store.read("1/a", slice(2, 5)) == b"234"
    assert store.read("1/a", slice(20, 25)) == b""  # a shorter object than expected is damage, not an unreachable store
    assert store.listed() == ["1/a", "1/b/c", "10/a"] and store.listed("1/") == ["1/a", "1/b/c"]
    assert ObjectStore(place + "/1").listed() == ["a", "b/c"]
    store.delete("10/a")
    store.delete("10/a")
    store.delete_under("1/")
    assert store.listed() == []


def test_an_object_is_replaced_only_if_it_is_what_it_was(place):
    store = ObjectStore(place)
    assert store.replace("x", None, b"1")
    assert not store.replace("x", None, b"2") and not store.replace("x", b"0", b"2")
    assert store.replace("x", b"1", b"2") and store.read("x") == b"2"


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3://a/../b", "s3://k:s@bucket/x", "http://a/b",
                                 "s3://bucket/a?b=c", "gs:///x", "", "/"])  # fmt: skip
def test_places_that_cannot_be_are_refused(url):
    with pytest.raises(ValueError, match="expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a folder, found"):
        check_url(url)


def test_a_place_is_named_without_a_slash_at_its_end():
    assert check_url("gs://bucket/runs/a/") == "gs://bucket/runs/a" and check_url("/data/a/") == "/data/a"


def test_keys_stay_inside_their_prefix():
    assert is_key("arrays/d/0a1b") and is_key("_CHECKPOINT_METADATA") and is_key("ocdbt.process_0/manifest.ocdbt")
    assert not any(map(is_key, ("", "/a", "a/", "a//b", "../a", "a/../b", "a/.", "a\\b", "a\nb", "~/a b")))


def test_a_bucket_that_is_not_there_is_an_error_that_names_the_place(bucket):
    with pytest.raises(StoreRefused, match=r"s3://absent/x: 1 could not be written: NOT_FOUND: NoSuchBucket"):
        ObjectStore("s3://absent/x").write("1", b"")


def test_a_wrong_endpoint_is_an_input_error(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "ftp://user@host")
    with pytest.raises(InputError, match=r"AWS_ENDPOINT_URL: expected http\(s\)://HOST"):
        ObjectStore(bucket)


def test_a_server_that_does_not_answer_is_an_error_that_names_the_place(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("maverick_jax.checkpoint.object_store._RETRIES", {"max_retries": 1})
    with pytest.raises(StoreUnreachable, match=r"its objects could not be listed: .*connect"):
        ObjectStore(bucket).listed()
