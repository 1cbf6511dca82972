"""Multiple choice: files, prompts, likelihoods, letters, subjects."""

import pytest

from data.tasks.base import Graded
from data.tasks.multiple_choice import MultipleChoice
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Reply
from tests.helpers.shared_data import SHARED, needs_shared

HEAD = "question,choice0,choice1,choice2,answer\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "old_maps_test.csv").write_text(HEAD + '"Which, then?",x,y,z,2\n')
    (tmp_path / "test" / "sums.jsonl").write_text('{"question": "1+1?", "choices": ["2", "3"], "answer": "A"}\n')
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "old_maps_dev.csv").write_text(HEAD + "Shot?,a,b,c,1\n")
    (tmp_path / "dev" / "sums.jsonl").write_text('{"question": "s", "choices": ["2", "3"], "answer": 1}\n')
    return tmp_path


def of(folder, **settings) -> MultipleChoice:
    return MultipleChoice(path=str(folder / "test"), shots_path=str(folder / "dev"), **settings)


def test_prompts_of_base_models(folder):
    maps, sums = of(folder).examples()
    assert maps.prompt == (
        "The following are multiple choice questions (with answers) about old maps.\n\n"
        "Shot?\nA. a\nB. b\nC. c\nAnswer: B\n\nWhich, then?\nA. x\nB. y\nC. z\nAnswer:"
    )
    assert (maps.choices, maps.references) == ((" A", " B", " C"), ("2",))
    assert (sums.choices, sums.references, sums.id) == ((" A", " B"), ("0",), "sums 0")
    assert of(folder).grade_choice(maps, [-3, -2, -1]).score == 1 and of(folder).grade_choice(sums, [-3, -2]).score == 0


def test_written_answers(folder):
    task = of(folder, how="generate", chat=True)
    maps, sums = task.examples()
    assert maps.choices == () and maps.prompt.messages[1].text == "Answer: B"
    graded = [Graded(e, r, task.grade(e, r)) for e, r in [(maps, Reply("So.\nAnswer: C")), (sums, Reply("B"))]]
    assert [one.grade.score for one in graded] == [1, 0]
    assert {name: one.value for name, one in task.figures(graded).items()} == {"subject old_maps": 1, "subject sums": 0}
    base = of(folder, how="generate")
    assert base.grade(base.examples()[0], Reply(" C\n\nA. more")).score == 1


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("q,a,b,c,3\n", r"answer: '3'; expected the number of a choice, 0 to 2"), ("q,a,b,c,D\n", "answer: 'D'"),
        ("q,a,b\n", "3 columns; expected 5"), ("", "the table has no rows"), ('q,"a,b,c,1\n', "line 2"),
    ],
)  # fmt: skip
def test_broken_tables_are_named(tmp_path, row, problem):
    (tmp_path / "a.csv").write_text(HEAD + row)
    with pytest.raises(InputError, match=problem):
        MultipleChoice(path=str(tmp_path / "a.csv")).examples()


def test_missing_shots_are_named(folder):
    (folder / "dev" / "sums.jsonl").unlink()
    with pytest.raises(InputError, match=r"sums_dev.csv: no such file"):
        of(folder).examples()


@needs_shared
def test_the_real_tables_are_read():
    task = MultipleChoice(path=str(SHARED / "mmlu" / "test"), shots_path=str(SHARED / "mmlu" / "dev"))
    assert len(task.examples()) == 1324
