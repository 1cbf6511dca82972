"""The strict YAML loader: known traps of YAML, lines of keys, and round trips of `dump`."""

import pathlib

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st

from maverick_jax.errors import InputError
from maverick_jax.settings import strict_yaml
from maverick_jax.settings.strict_yaml import MAX_BYTES, Location, dump, parse, parse_value

HERE = Location("command line")


def value(text: str):
    document = parse(f"key: {text}\n", "f.yaml")
    assert document.problems == []
    return document.data["key"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        ("+1.5E+3", 1500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -float("inf")),
        ("0x1f", 31),
        ("0o17", 15),
        ("-12", -12),
        ("0", 0),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("0b11", "0b11"),
        ("no", "no"),
        ("off", "off"),
        ("On", "On"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("'null'", "null"),
        ("'3e-4'", "3e-4"),
        ("١٢", "١٢"),
        ("v1.0", "v1.0"),
        ("<<", "<<"),
    ],
)
def test_scalars_follow_yaml_1_2(text, expected):
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_keys_are_always_strings():
    assert parse("no: 1\noff: 2\n2024-01-01: 3\n", "f").data == {"no": 1, "off": 2, "2024-01-01": 3}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 010\n", 1, "a: 010: a leading zero; write 10"),
        ("a: 1\nb: 2\na: 3\n", 3, "a: given twice (first in f.yaml:1)"),
        ("a: &x [1]\n", 1, "a: anchor &x is not allowed"),
        ("a: 1\nb: [*x]\n", 2, "b.0: alias *x is not allowed"),
        ("a: &x [*x]\n", 1, "a: anchor &x is not allowed"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "a: tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !!str 3\n", 1, "tag"),
        ("a:\n  5: 6\n", 2, "a: a key must be a string, got 5"),
        ("a:\n  ? [1, 2]\n  : 6\n", 2, "a: a key must be a string, got a collection"),
        ("a: 1\n---\nb: 2\n", 2, "a second document"),
        ('a: "\\ud800"', 1, "a: half of a surrogate pair"),
        ("a: " + "9" * 5000, 1, "an integer of 5000 digits"),
    ],
)
def test_a_problem_has_its_line(text, line, message):
    (problem, *_) = parse(text, "f.yaml").problems
    assert str(problem).startswith(f"f.yaml:{line}: ")
    assert message in str(problem)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\n", "f.yaml:2: not YAML"),
        ("a: b: c\n", "f.yaml:1: not YAML"),
        ("a: 1\nb:\n\tc: 1\n", "f.yaml:3: not YAML"),
        ("a: 1\nb: \x01\n", "f.yaml:2: not YAML"),
        ("[" * 2000, "f.yaml:1: nested more than"),
        ("{a: " * 40, "nested more than"),
    ],
)
def test_invalid_yaml_is_one_error(text, message):
    with pytest.raises(InputError, match=r"f\.yaml") as error:
        parse(text, "f.yaml")
    assert message in str(error.value)


def test_all_problems_of_a_text_are_found_at_once():
    document = parse("a: 01\na: 2\nb: &x 1\nc: *x\nd: !t 1\n", "f.yaml")
    assert [p.place.line for p in document.problems] == [1, 2, 3, 4, 5]
    with pytest.raises(InputError) as error:
        strict_yaml.raise_problems(document.problems)
    assert len(str(error.value).splitlines()) == 5


def test_every_key_has_its_line():
    document = parse("a:\n  b: 1\n  c:\n  - x\n  - y: 2\n# no\nd: {e: 3,\n  f: 4}\n", "f.yaml")
    lines = {key: place.line for key, place in document.places.items()}
    assert lines == {
        "": 1,
        "a": 1,
        "a.b": 2,
        "a.c": 3,
        "a.c.0": 4,
        "a.c.1": 5,
        "a.c.1.y": 5,
        "d": 7,
        "d.e": 7,
        "d.f": 8,
    }
    assert document.place("a.c.1.z.w").line == 5  # absent: the nearest ancestor


def test_files_that_cannot_be_configs(tmp_path):
    big, binary = tmp_path / "big.yaml", tmp_path / "binary.yaml"
    big.write_bytes(b"a: 1\n" + b"#" * MAX_BYTES)
    binary.write_bytes(b"a: 1\nb: \xff\xfe\n")
    for path, message in [(big, "larger than 1 MiB"), (binary, ":2: not UTF-8"), (tmp_path, "cannot be read")]:
        with pytest.raises(InputError) as error:
            strict_yaml.read(path)
        assert message in str(error.value)
        assert str(path) in str(error.value)


def test_override_values():
    for text, expected in [
        ("3e-4", 3e-4),
        ("", None),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("gs://b/c", "gs://b/c"),
    ]:
        document = parse_value(text, HERE, "k")
        assert (document.data, document.problems) == (expected, [])


@pytest.mark.parametrize("text", ["a: b", "- a", "x #y", "#1", "[1,", "*a", "010", "x\n---\ny", "{a: 1, a: 2}", "\x01"])
def test_override_values_that_are_refused(text):
    (problem, *_) = parse_value(text, HERE, "o.k").problems
    assert str(problem).startswith("command line: o.k")


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["C"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abno1_.-~ ", min_size=1), inner, max_size=4),
    max_leaves=12,
)


@hypothesis.given(plain)
@hypothesis.settings(max_examples=150)
def test_dumped_data_is_parsed_back(data):
    document = parse(dump(data), "f")
    assert document.problems == []
    assert document.data == data


@hypothesis.given(st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!#'\"|>%@?,\n \t01.~<")), max_size=40))
@hypothesis.settings(max_examples=300)
def test_any_text_is_data_problems_or_one_error(text):
    """Text without problems is also a single YAML document to PyYAML, and can be dumped."""
    try:
        document = parse(text, "f")
    except InputError:
        return
    if not document.problems:
        assert sum(isinstance(e, yaml.DocumentStartEvent) for e in yaml.parse(text, Loader=yaml.SafeLoader)) <= 1
        dump(document.data)


def test_no_other_module_imports_yaml():
    root = pathlib.Path(strict_yaml.__file__).parents[2]
    sources = [p for top in ("maverick_jax", "train", "data", "launch") for p in (root / top).rglob("*.py")]
    assert len(sources) > 10
    users = [p.name for p in sources if "import yaml" in p.read_text()]
    assert users == ["strict_yaml.py"]
