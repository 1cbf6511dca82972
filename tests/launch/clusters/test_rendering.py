"""Templates are filled in without a value becoming syntax."""

import subprocess

import pytest
import yaml

from launch.clusters.rendering import comment, fill, scalar, shell

HOSTILE = ["a b", "it's", '"; rm -rf / #', "$(id)", "`id`", "${HOME}", "<<name>>", "a\nb: c", "é東", "!!python/x", "%x"]


def test_places_alone_on_a_line_take_any_number_of_lines():
    text = "a\n  <<x>>\nb: <<y>>\n    <<z>>\nend\n"
    assert fill(text, x="1\n\n2", y="3", z="") == "a\n  1\n\n  2\nb: 3\nend\n"


def test_values_are_not_searched_for_places():
    assert fill("<<x>>\n<<y>> <<x>>\n", x="<<y>>", y="<<x>>") == "<<y>>\n<<x>> <<y>>\n"


def test_a_place_without_a_value_and_a_value_without_a_place_are_errors():
    with pytest.raises(KeyError):
        fill("<<x>>")
    with pytest.raises(ValueError, match="no place for y"):
        fill("a <<x>>", x="1", y="2")


@pytest.mark.parametrize("word", HOSTILE)
def test_quoted_values_are_read_back(word):
    assert yaml.safe_load(f"key: {scalar(word)}\nlist: {scalar([word])}") == {"key": word, "list": [word]}


@pytest.mark.parametrize("word", [*HOSTILE, "", "a\x85b\u2028'c\\", "\x1b[2J\t\r", "a\n", "\\'\n"])
def test_bash_reads_quoted_words_back(word):
    line = f"printf '%s\\0' {shell(['a', word])}"
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == ["a", word]


@pytest.mark.parametrize("word", [*HOSTILE, "a\x85b", "a\u2028b", "a\rb", "\x1b[2J"])
def test_a_comment_stays_one(word):
    lines = comment(f"made by {word} " + "long " * 60).splitlines()
    assert all(line.startswith("# ") and line.isprintable() and len(line) < 130 for line in lines)
