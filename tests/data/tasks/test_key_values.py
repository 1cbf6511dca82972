"""Key-value retrieval: depths of made-up pairs and of real files."""

import json

import pytest

from data.tasks.base import Graded
from data.tasks.key_values import KeyValues
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Reply
from tests.helpers.shared_data import SHARED, needs_shared


def listed(example) -> dict[str, str]:
    text = example.prompt.messages[0].text
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def test_made_up_pairs_have_their_key_at_each_depth():
    task = KeyValues(pairs=11, count=2)
    found = task.examples()
    assert found == KeyValues(pairs=11, count=2).examples() and len({e.id for e in found}) == 10
    for i, example in enumerate(found[:5]):
        pairs = list(listed(example).items())
        key = example.prompt.messages[0].text.rpartition('Key: "')[2].rstrip('"')
        assert len(pairs) == 11 and pairs.index((key, example.references[0])) == round(10 * i / 4)
    assert len({e.group for e in found}) == 2


def test_the_value_counts_anywhere_in_the_answer():
    task = KeyValues(pairs=3, count=1, depths=(0.0, 1.0))
    first, last = task.examples()
    grades = [task.grade(first, Reply(f'The value is "{first.references[0].upper()}".')), task.grade(last, Reply("x"))]
    assert [(g.score, g.parts["exact"]) for g in grades] == [(1, 0), (0, 0)]
    found = task.figures([Graded(e, Reply(""), g) for e, g in zip((first, last), grades, strict=True)])
    assert {name: one.value for name, one in found.items()} == {"depth 0.0 to 0.1": 1, "depth 0.9 to 1.0": 0}


def test_keys_that_are_not_there_are_named(tmp_path):
    row = {"ordered_kv_records": [["a", "b"]], "key": "a", "value": "c"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="line 1: key: is not a key of ordered_kv_records with this value"):
        KeyValues(path=str(tmp_path / "a.jsonl")).examples()


@needs_shared
def test_the_real_file_keeps_its_order():
    path = SHARED / "kv_retrieval_75.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    found = KeyValues(path=str(path)).examples()
    assert len(found) == 60 and listed(found[0]) == dict(first["ordered_kv_records"])
