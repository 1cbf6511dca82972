"""Keys that moved: an old one is answered with today's name, and old data is read with today's keys."""

import pytest

from maverick_jax.settings.moved_keys import moved_problems, new_name, with_new_keys
from maverick_jax.settings.strict_yaml import Location, parse

MOVED = {"a.old": "b.new", "a.part": "c", "gone": "b.section"}


@pytest.mark.parametrize(
    ("key", "today"),
    [
        ("a.old", "b.new"),
        ("a.old.x.0", "b.new.x.0"),
        ("a.part.y", "c.y"),
        ("gone", "b.section"),
        ("a", None),
        ("a.older", None),
        ("b.new", None),
        ("x.a.old", None),
    ],
)
def test_the_new_name_of_a_key(key, today):
    assert new_name(key, MOVED) == today


def test_every_moved_key_of_a_document_is_reported_once_with_its_line():
    document = parse("a:\n  kept: 1\n  old: {x: [1, 2], y: 2}\ngone: null\nb: {new: 3}\n", "file.yaml")
    document.places["a.old.x.0"] = document.places["a.part.z"] = Location("command line")
    assert {str(problem) for problem in moved_problems(document, MOVED)} == {
        "file.yaml:3: a.old: moved to b.new",
        "file.yaml:4: gone: moved to b.section",
        "command line: a.old.x.0: moved to b.new.x.0",
        "command line: a.part.z: moved to c.z",
    }
    assert moved_problems(parse("a: {kept: 1}\nb: {new: 2}\n", "file.yaml"), MOVED) == []


def test_old_data_is_read_with_todays_keys():
    old = {"a": {"old": {"x": 1}, "kept": 2}, "gone": None, "other": [3]}
    assert with_new_keys(old, MOVED) == {"a": {"kept": 2}, "other": [3], "b": {"new": {"x": 1}, "section": None}}
    assert old == {"a": {"old": {"x": 1}, "kept": 2}, "gone": None, "other": [3]}
    assert with_new_keys({"a": {"part": 4}}, MOVED) == {"c": 4}  # nothing is left of `a`


@pytest.mark.parametrize("data", [{"a": 5}, {"a": {"old": 1}, "b": {"new": 2}}, {"a": {"old": 1}, "b": 3}, {}])
def test_data_that_leaves_no_room_stays_as_it_is(data):
    assert with_new_keys(data, MOVED) == data
