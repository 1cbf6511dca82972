"""MGSM: tables of several languages."""

import pytest

from data.tasks.mgsm import Mgsm
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Reply
from tests.helpers.shared_data import SHARED, needs_shared


def test_a_problem_in_several_languages_is_one_source(tmp_path):
    for language in ("en", "zh"):
        (tmp_path / f"mgsm_{language}.tsv").write_text(
            'A "quoted\tproblem?\t1,000\nb\t7\n'.replace("\tproblem", " problem")
        )
    task = Mgsm(path=str(tmp_path), chat=False)
    found = task.examples()
    assert [(e.id, e.group) for e in found] == [("en 0", "0"), ("en 1", "1"), ("zh 0", "0"), ("zh 1", "1")]
    assert found[0].prompt == 'A "quoted problem?\n'
    assert task.grade(found[0], Reply("\uff11\uff10\uff10\uff10\u3002")).score == 1


def test_broken_tables_are_named(tmp_path):
    (tmp_path / "mgsm_en.tsv").write_text("a\tb\tc\n")
    with pytest.raises(InputError, match=r"mgsm_en.tsv: line 1: 3 columns; expected 2: question, answer"):
        Mgsm(path=str(tmp_path)).examples()
    with pytest.raises(InputError, match=r"contains no file that ends in .tsv"):
        Mgsm(path=str(tmp_path.parent)).examples()


@needs_shared
def test_the_real_tables_are_read():
    assert len(Mgsm(path=str(SHARED / "mgsm")).examples()) == 750
