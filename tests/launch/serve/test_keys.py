"""Where the key comes from, and who may read it."""

import os
import stat

import pytest

from launch.serve import keys
from maverick_jax.errors import InputError


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(keys.VARIABLE, raising=False)


def test_a_key_is_made_once_in_a_file_of_ones_own(tmp_path):
    path = tmp_path / "deep" / "key"
    key = keys.key_of(path)
    assert len(key) >= 43 and keys.key_of(path) == key and path.read_text().strip() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.key_of(tmp_path / "other") != key


def test_the_environment_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv(keys.VARIABLE, "k" * 20)
    assert keys.key_of(tmp_path / "key") == "k" * 20 and not (tmp_path / "key").exists()
    monkeypatch.setenv(keys.VARIABLE, "short")
    with pytest.raises(InputError, match="expected a key of 16 to 512") as caught:
        keys.key_of(tmp_path / "key")
    assert "short" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "key"
    path.write_text("k" * 43)
    path.chmod(mode)
    with pytest.raises(InputError, match="mode 600"):
        keys.key_of(path)


def test_links_and_folders_are_refused(tmp_path):
    keys.key_of(tmp_path / "key")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    os.mkdir(tmp_path / "folder", 0o700)
    for name in ("link", "folder"):
        with pytest.raises(InputError, match=name):
            keys.key_of(tmp_path / name)


def test_keys_are_compared_whole():
    assert keys.same(b"abc", "abc")
    assert not any(keys.same(given, "abc") for given in (b"", b"ab", b"abcd", b"abC", b"\xff"))
