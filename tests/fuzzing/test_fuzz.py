"""A few examples of each target of `make fuzz`, and tests that the harness detects each kind of finding."""

import importlib
import re
import time

import pytest
from hypothesis import strategies as st

from maverick_jax.errors import InputError, MaverickError
from tests.fuzzing.harness import ROOT, Target, fuzz
from tests.fuzzing.targets import MAKERS, WEIGHTS, make

QUICK = ("config", "generation", "image", "chat", "calls", "tokenizer", "runs", "pictures")


@pytest.mark.parametrize("name", QUICK)
def test_a_few_examples_of_each_target(name, tmp_path):
    report = fuzz(make(name, tmp_path), seconds=60, seed=1, rounds=1)
    assert not report.findings and report.examples > 30
    assert report.refused


def test_every_target_gets_its_time():
    assert WEIGHTS.keys() == MAKERS.keys() >= set(QUICK)


class Panic(BaseException):
    pass


class Colored(MaverickError):
    def __str__(self) -> str:
        return "\x1b[31m"


def _raise(error: BaseException):
    raise error


BAD = {
    "another error": (lambda example: {}[example], "KeyError"),
    "a panic": (lambda example: _raise(Panic()), "Panic"),
    "an endless loop": (lambda example: [None for _ in iter(int, 1)], "TooSlow"),
    "a loop that ignores errors": (lambda example: _spin(), "TooSlow"),
    "a slow one": (lambda example: _burn(0.3), "TooSlow"),
    "a large one": (lambda example: len(bytearray(b"x") * (64 << 20)), "TooLarge"),
    "a message for terminals": (lambda example: _raise(Colored()), "BadMessage"),
}


def _burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def _spin() -> None:
    while True:
        try:
            _burn(10)
        except Exception:
            continue


@pytest.mark.parametrize("name", BAD)
def test_each_kind_of_finding_is_detected(name):
    read, kind = BAD[name]
    seconds = 5 if kind == "TooLarge" else 0.1  # new memory pages may take longer than 0.1 s on a virtual machine
    report = fuzz(Target("bad", st.just(1), read, seconds=seconds, megabytes=32), seconds=0.05, seed=0)
    assert [cause[0] for cause in report.findings] == [kind]


def test_accepted_and_refused_examples_are_no_findings():
    refuse = Target("good", st.just(1), lambda example: _raise(InputError("no")))
    report = fuzz(refuse, seconds=0.05, seed=0)
    assert report.refused and not report.taken and not report.findings


def test_the_docs_state_the_number_of_malformed_cases():
    rows = [line.split("|") for line in (ROOT / "docs" / "reference" / "safety.md").read_text().splitlines()]
    total = 0
    for *_, tests, said, _ in (row for row in rows if len(row) == 7 and row[5].strip().isdigit()):
        name, tables = re.findall(r" `(tests/[\w/]+)\.py`: (.*)", tests)[0]
        module = importlib.import_module(name.replace("/", "."))
        total += (there := sum(len(getattr(module, table)) for table in re.findall(r"`([A-Z_]+)`", tables)))
        assert there >= int(said), name
    assert total >= 300
