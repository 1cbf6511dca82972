"""Who starts anew to have memory in huge pages, and who does not."""

import os
import pathlib
import subprocess
import sys

import pytest

from launch import cli, huge_pages

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGUN = """
import os, pathlib, sys
from launch import huge_pages
huge_pages.SWITCH = pathlib.Path(sys.argv[1])
print("begun", os.getpid(), flush=True)
huge_pages.use_huge_pages()
print("goes on", os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[2:], __debug__)
"""


@pytest.fixture
def switch(tmp_path, monkeypatch):
    """The kernel's, as one that gives huge pages to who asks."""
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages, "SWITCH", path)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return path


@pytest.fixture
def started(monkeypatch):
    """GLIBC_TUNABLES of each process that would have been started."""
    found: list[str] = []
    monkeypatch.setattr(os, "execve", lambda path, words, env: found.append(env["GLIBC_TUNABLES"]))
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36", raising=False)
    return found


def test_a_process_starts_anew_once_and_is_the_same(switch):
    if huge_pages._glibc() < huge_pages.OLDEST:
        pytest.skip("the C library has no such setting")
    words = [sys.executable, "-O", "-c", BEGUN, str(switch), "a b", "--x=$HOME"]
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as process:
        said = process.communicate()[0]
    pid = process.pid
    assert said.splitlines() == [
        f"begun {pid}", f"begun {pid}", f"goes on {pid} glibc.malloc.hugetlb=1 a b --x=$HOME False"]  # fmt: skip


def test_what_is_set_stays(switch, started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.perturb=3")
    huge_pages.use_huge_pages()
    assert started == ["glibc.malloc.perturb=3:glibc.malloc.hugetlb=1"]


@pytest.mark.parametrize("value", ["glibc.malloc.hugetlb=0", "glibc.malloc.perturb=3:glibc.malloc.hugetlb=2"])
def test_who_has_said_either_way_is_left_alone(value, switch, started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", value)
    huge_pages.use_huge_pages()
    assert started == []


@pytest.mark.parametrize("text", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_a_kernel_that_need_not_or_cannot_be_asked(text, switch, started):
    switch.write_text(text) if text else switch.unlink()
    huge_pages.use_huge_pages()
    assert started == []


@pytest.mark.parametrize("version", ["glibc 2.34", "musl 1.2.5", "glibc", "", None, ValueError("unrecognized name")])
def test_another_c_library(version, switch, started, monkeypatch):
    def confstr(name):
        if isinstance(version, Exception):
            raise version
        return version

    monkeypatch.setattr(os, "confstr", confstr, raising=False)
    huge_pages.use_huge_pages()
    assert started == []


@pytest.mark.parametrize(
    ("words", "anew"),
    [
        (["train", "nowhere.yaml"], True),
        (["data", "targets", "nowhere.yaml"], True),
        (["data", "stats", "nowhere.yaml"], False),
        (["--help"], False),
        ([], False),
        (["plan", "train"], False),
    ],
)
def test_only_what_computes_starts_anew(words, anew, switch, started, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["maverick", *words])
    cli.command()
    assert bool(started) is anew
