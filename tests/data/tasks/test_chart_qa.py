"""ChartQA: both forms of labels, and pictures that must lie in their folder."""

import json

import pytest

from data.tasks.chart_qa import ChartQa
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Reply


def task_of(folder, rows) -> ChartQa:
    (folder / "png").mkdir(exist_ok=True)
    (folder / "png" / "1.png").touch()
    (folder / "q.json").write_text(json.dumps(rows))
    return ChartQa(path=str(folder / "q.json"), images=str(folder / "png"))


def test_questions_of_a_picture_are_one_source(tmp_path):
    rows = [
        {"imgname": "1.png", "query": "How many?", "label": "14"},
        {"imgname": "1.png", "query": "x", "label": [3, "4"]},
    ]
    one, two = task_of(tmp_path, rows).examples()
    assert (one.group, two.group, one.references, two.references) == ("1.png", "1.png", ("14",), ("3", "4"))
    assert one.images == ((tmp_path / "png" / "1.png").resolve(),)
    assert task_of(tmp_path, rows).grade(one, Reply("Answer: 14.3")).score == 1


@pytest.mark.parametrize(("name", "problem"), [("../q.json", "lies outside of"), ("2.png", "is no file")])
def test_pictures_elsewhere_are_refused(tmp_path, name, problem):
    with pytest.raises(InputError, match=rf"record 0: imgname: .*{problem}"):
        task_of(tmp_path, [{"imgname": name, "query": "x", "label": "1"}]).examples()
