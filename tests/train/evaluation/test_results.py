"""Files of results, and comparisons."""

import copy
import json

import pytest

from maverick_jax.errors import InputError
from train.evaluation.results import FILE, compare, read_results, results_path, write_results


def result(scores, groups=None, digest="d") -> dict:
    examples = [{"id": str(i), "score": s, "reason": "", "text": "\udce9"} for i, s in enumerate(scores)]
    for example, group in zip(examples, groups or [], strict=False):
        example["group"] = group
    figure = {"value": sum(scores) / len(scores), "n": len(scores), "low": 0.0, "high": 1.0}
    return {"score": figure, "digest": digest, "examples": examples}


A = {"tasks": {"x": result([1, 0, 0, 0, 0, 0]), "y": result([1, 1])}}
B = {"tasks": {"x": result([1, 1, 1, 1, 1, 1]), "y": result([1, 0])}}


def test_two_models_on_the_same_examples():
    found = compare(A, B, ("a", "b"))
    x = found["tasks"]["x"]
    assert found["models"] == ["a", "b"] and (x["first"]["n"], x["paired"]["second_only"]) == (6, 5)
    assert x["paired"]["p_value"] == pytest.approx(2 / 2**5) and x["p_holm"] == pytest.approx(4 / 2**5)
    assert x["paired"]["test"] == "mcnemar" and json.loads(json.dumps(found)) == found
    grouped = copy.deepcopy([A, B])
    for side in grouped:
        for i, example in enumerate(side["tasks"]["x"]["examples"]):
            example["group"] = str(i // 2)
    assert compare(*grouped, ("a", "b"))["tasks"]["x"]["paired"]["test"] == "t"


@pytest.mark.parametrize(
    ("tasks", "problem"),
    [
        ({"x": B["tasks"]["x"]}, "task y: only a has results of it"),
        ({"x": result([1]), "y": B["tasks"]["y"]}, r"task x: the examples differ \(6 and 1 of them\)"),
        ({"x": result([1] * 6, digest="e"), "y": B["tasks"]["y"]}, "other texts or answers"),
    ],
)
def test_results_of_different_examples_are_refused(tasks, problem):
    with pytest.raises(InputError, match=problem):
        compare(A, {"tasks": tasks}, ("a", "b"))


def test_files(tmp_path):
    path = write_results(tmp_path / "out", A)
    assert path.name == FILE and results_path(str(tmp_path / "out")) == path == results_path(str(path))
    assert read_results(path)["tasks"]["x"]["score"] == A["tasks"]["x"]["score"]
    assert results_path(str(tmp_path)) is None
    for change, problem in [({"format": "x"}, "format: 'x'"), ({"tasks": {}}, "no results of tasks"),
                            ({"tasks": {"x": {"examples": [{"id": 1}]}}}, "tasks.x: examples")]:  # fmt: skip
        (tmp_path / "bad.json").write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(InputError, match=problem):
            read_results(tmp_path / "bad.json")
