"""The table of mutations fits the code, and its runner tells killed from survived."""

import pytest

from tests.mutations.__main__ import main, run
from tests.mutations.table import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.id)
def test_each_mutation_changes_one_place_and_names_tests_that_exist(mutation):
    assert mutation.problems() == [], "adapt tests/mutations/table.py to the code"
    assert mutation.old != mutation.new and mutation.tests


def test_ids_are_unique():
    ids = [mutation.id for mutation in MUTATIONS]
    assert len(ids) == len(set(ids))


def entry(old: str = "a + b", tests: tuple[str, ...] = ("test_added.py",)) -> Mutation:
    return Mutation("X1", "subtracts", "added.py", old, "a - b", tests)


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "added.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "test_added.py").write_text(
        "from added import add\n\n\ndef test_sum():\n    assert add(2, 1) == 3\n\n\ndef test_zero():\n    add(0, 0)\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    return tmp_path


def test_problems_name_what_does_not_fit(tree):
    assert entry().problems(tree) == []
    assert "occurs 0 times" in entry("a * b").problems(tree)[0]
    assert "occurs 2 times; expected once" in entry("b").problems(tree)[0]
    assert "no such test file" in entry(tests=("test_other.py",)).problems(tree)[0]
    assert "no test test_other" in entry(tests=("test_added.py::test_other",)).problems(tree)[0]


def test_the_runner_tells_killed_from_survived_and_restores_the_file(tree, capsys):
    before = (tree / "added.py").read_text()
    found = [run(entry(tests=(f"test_added.py::{name}",)), tree) for name in ("test_sum", "test_zero")]
    assert found == ["killed", "survived"]
    assert (tree / "added.py").read_text() == before
    assert "X1\tkilled" in capsys.readouterr().out


def test_unknown_ids_are_refused(capsys):
    assert main(["Z99"]) == 2
    assert "Z99: no such mutation; expected some of A1, " in capsys.readouterr().err
