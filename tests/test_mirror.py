"""The tests mirror the tree: tests/train/faults/test_watchdog.py tests train/faults/watchdog.py."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("maverick_jax", "train", "data", "launch", "benchmarks")
ELSEWHERE = ("assets", "docs", "faults", "fuzzing", "golden", "helpers", "mutations", "parity", "runs")
"""Folders of tests that are of no one module: data, whole processes, oracles, what tests share."""

MIRRORED = sorted(p for package in PACKAGES for p in (ROOT / "tests" / package).rglob("test_*.py"))


def module_of(path: pathlib.Path, root: pathlib.Path = ROOT) -> pathlib.Path | None:
    """The module or folder that a test file tests: NAME of `test_NAME.py`, or the longest NAME of
    `test_NAME_ASPECT.py`, under the same path without `tests`; None if there is none."""
    folder = root / path.relative_to(root / "tests").parent
    words = path.stem.removeprefix("test_").split("_")
    for count in range(len(words), 0, -1):
        name = folder / "_".join(words[:count])
        for found in (name.with_suffix(".py"), name):
            if found.exists():
                return found
    return folder if folder.name == path.stem.removeprefix("test_") and folder.is_dir() else None


@pytest.mark.parametrize("path", MIRRORED, ids=lambda p: str(p.relative_to(ROOT / "tests")))
def test_each_test_file_mirrors_a_module(path):
    assert module_of(path) is not None, "name it after a module of the folder it mirrors: test_MODULE.py"


def test_tests_are_in_known_folders():
    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and not p.name.startswith(("_", "."))}
    assert folders <= {*PACKAGES, *ELSEWHERE}


def test_a_misplaced_test_is_detected(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "loop.py").touch()
    of = lambda name: module_of(tmp_path / "tests" / "train" / name, tmp_path)
    assert of("test_loop.py") == of("test_loop_order.py") == tmp_path / "train" / "loop.py"
    assert of("test_loops.py") is None
