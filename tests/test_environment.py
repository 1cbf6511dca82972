"""What tests run in: the lock follows pyproject.toml, and no property test has a time limit of its own."""

import ast
import pathlib
import re
import tomllib

from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_lock_has_a_version_in_the_range_of_everything_that_is_tested():
    extras = PROJECT["optional-dependencies"]
    wanted = [
        Requirement(text) for text in PROJECT["dependencies"] + extras["test"] + extras["oracles"] + extras["docs"]
    ]
    lines = (ROOT / ".ci" / "requirements.lock").read_text().splitlines()
    locked = dict(re.match(r"(\S+)==(\S+)", line).groups() for line in lines if not line.lstrip().startswith("#"))
    name = lambda requirement: requirement.name.lower().replace("_", "-")
    assert [str(r) for r in wanted if not r.specifier.contains(locked.get(name(r), ""))] == [], "make lock"


def test_the_lock_of_the_compilers_has_what_their_extra_names():
    locked = set(re.findall(r"^(\S+)==", (ROOT / ".ci" / "compilers.lock").read_text(), re.MULTILINE))
    names = {Requirement(text).name for text in PROJECT["optional-dependencies"]["compilers"]} - {"jax"}
    assert names and names <= locked and {"jax-cuda13-plugin", "libtpu"} <= locked, "make lock"


def test_no_package_of_the_lock_is_of_cuda():
    assert not re.search(r"^(nvidia|cuda|triton)", (ROOT / ".ci" / "requirements.lock").read_text(), re.MULTILINE)


def test_no_property_test_has_a_deadline_of_its_own():
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "deadline":
                found.append(f"{path.relative_to(ROOT)}:{node.value.lineno}")
    assert found == [], "the profile in tests/conftest.py has it"
