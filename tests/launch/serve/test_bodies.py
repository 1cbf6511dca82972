"""JSON bodies: what Python's parser lets through, and what would cost too much."""

import json
import tracemalloc

import pytest

from launch.serve.bodies import parse_object
from launch.serve.errors import ApiError
from launch.serve.limits import RequestLimits

LIMITS = RequestLimits(depth=8, containers=100, items=1000)


def test_brackets_and_commas_in_texts_do_not_count():
    value = {"a": "[{" * 500 + ',"\\' * 500, "b": [[[[[[1]]]]]]}
    assert parse_object(json.dumps(value).encode(), LIMITS) == value


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"a": [[[[[[[[1]]]]]]]]}', "deeper than 8"),
        (b'{"a": [' + b"[]," * 200 + b"1]}", "lists and objects"),
        (b'{"a": [' + b"1," * 2000 + b"1]}", "values"),
        (b'{"a": "' + b"x" * 50, "not JSON"),
        (b"[]", "expected a JSON object"),
        (b"", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b'{"a": Infinity}', "not a JSON number"),
        (b'{"a": 1, "a": 2}', "given twice"),
        (b"\xef\xbb\xbf{}", "not JSON"),
    ],
)
def test_other_bodies_are_refused(body, problem):
    with pytest.raises(ApiError, match=problem) as caught:
        parse_object(body, LIMITS)
    assert caught.value.status == 400


def test_texts_are_counted_before_they_are_read():
    limits = RequestLimits(texts=3)
    assert parse_object(b'{"a": "\\"\\"\\"\\"\\"", "b": 1}', limits) == {"a": '"' * 5, "b": 1}
    with pytest.raises(ApiError, match="more than 3 texts, the limit"):
        parse_object(b'{"a": 1, "b": 2, "c": 3, "d": 4}', limits)


def test_hostile_nesting_costs_little_memory():
    limits = RequestLimits()
    for body in (b'{"a": ' + b"[" * (8 << 20), b'{"a": [' + b"{}," * (4 << 20) + b"1]}"):
        tracemalloc.start()
        with pytest.raises(ApiError, match="the limit"):
            parse_object(body, limits)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * len(body)
