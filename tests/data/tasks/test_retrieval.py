"""Retrieval by length and depth: what is asked, where the record is, and the figures."""

import pytest

from data.tasks import TASKS
from data.tasks.base import Graded
from data.tasks.retrieval import Retrieval
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Reply

BYTES = load_tokenizer("bytes")


@pytest.mark.parametrize("sentences", [0.0, 0.5, 1.0])
def test_one_record_is_asked_for_at_each_depth_of_a_text_of_the_wanted_length(sentences):
    task = Retrieval(lengths=(256, 1024), count=3, sentences=sentences)
    examples = task.examples_for(BYTES)
    assert len(examples) == 2 * 3 * 5 and len({example.id for example in examples}) == len(examples)
    for example in examples:
        (value,) = example.references
        assert isinstance(example.prompt, str)
        *lines, question = example.prompt.splitlines(keepends=True)
        record = f"{question.removeprefix('?')}{value}\n"
        assert lines.count(record) == 1 and sum(line.startswith(record[:2]) for line in lines) == 1
        size = 1 + len(BYTES.encode(example.prompt + value))
        assert 0 <= example.facts["length"] - size < 48
        assert lines.index(record) == round(example.facts["depth"] * (len(lines) - 1))
        records = sum(len(line) == len(record) for line in lines)
        assert {0.0: records == 36, 1.0: records == 1}.get(sentences, 1 < records <= 36)


def test_the_same_text_is_asked_at_every_depth_and_a_seed_gives_another():
    kept = lambda task: [sorted(str(example.prompt).splitlines()) for example in task.examples_for(BYTES)]
    first = kept(Retrieval(lengths=(256,), count=2))
    assert first[0] == first[4] != first[5] and first == kept(Retrieval(lengths=(256,), count=2))
    assert first != kept(Retrieval(lengths=(256,), count=2, seed=1))


def test_an_answer_begins_with_the_value_and_a_message_contains_it():
    for chat, right in ((False, "{}\nab=12"), (True, "The value is {}.")):
        task = Retrieval(lengths=(1024,), count=1, chat=chat)
        example = task.examples_for(BYTES)[0]
        assert isinstance(example.prompt, str) != chat
        nothing = task.grade(example, Reply(""))
        assert task.grade(example, Reply(right.format(*example.references))).score == 1
        assert nothing.score == 0 and not nothing.answered


def test_the_grid_has_a_figure_with_its_interval_for_each_length_and_depth():
    task = Retrieval(lengths=(256, 512), depths=(0.0, 1.0), count=4)
    examples = task.examples_for(BYTES)
    wrong = lambda example: example.facts["length"] == 512 and example.facts["depth"] == 0
    grades = [task.grade(e, Reply("x" if wrong(e) else e.references[0])) for e in examples]
    graded = [Graded(e, Reply(""), g) for e, g in zip(examples, grades, strict=True)]
    grid = task.grid(graded).as_json()
    assert grid["lengths"] == [256, 512] and grid["depths"] == [0.0, 1.0]
    assert [[cell["value"] for cell in row] for row in grid["cells"]] == [[1, 1], [0, 1]]
    assert all(cell["n"] == 4 and cell["low"] <= cell["value"] <= cell["high"] for row in grid["cells"] for cell in row)
    margins = {name: one.value for name, one in task.figures(graded).items()}
    assert margins == {"length      256": 1, "length      512": 0.5, "depth 0.00": 0.5, "depth 1.00": 1}


def test_examples_without_a_tokenizer_are_refused():
    assert "retrieval" in TASKS.members
    with pytest.raises(InputError, match="expected `examples_for`"):
        Retrieval().examples()


def test_a_length_that_the_question_alone_exceeds_is_refused():
    with pytest.raises(InputError, match=r"lengths: 64: .* take \d+ tokens .*; expected at least \d+"):
        Retrieval(lengths=(64,), chat=True).examples_for(BYTES)
