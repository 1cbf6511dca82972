"""The choice of kernels, and its log lines."""

import logging

import pytest

from maverick_jax.ops import kernels
from maverick_jax.ops.kernels import Kernel, choose, recorded

EVEN = Kernel("even", lambda x: x // 2, lambda x: "odd numbers are not divided" if x % 2 else None, ("gpu",))
ELSEWHERE = Kernel("elsewhere", lambda x: x / 2, platforms=("tpu",))
ANY = Kernel("any", lambda x: x / 2)


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(kernels, "traced_platform", lambda: "gpu")
    monkeypatch.setattr(kernels, "_announced", set())


def said(caplog):
    return [(record.levelname, record.message) for record in caplog.records]


@pytest.mark.parametrize(("number", "name"), [(2, "even"), (3, "any")])
def test_the_first_that_applies_is_chosen(number, name):
    assert choose("halving", [ELSEWHERE, EVEN, ANY], number).name == name


def test_each_choice_is_said_once_with_its_reasons(caplog):
    caplog.set_level(logging.INFO)
    for number in (2, 3, 4, 5):
        choose("halving", [ELSEWHERE, EVEN, ANY], number)
    refused = "halving: any; not even, odd numbers are not divided"
    assert said(caplog) == [("INFO", "halving: even"), ("WARNING", refused)]


def test_nothing_is_said_where_only_the_general_kernel_exists(caplog, monkeypatch):
    monkeypatch.setattr(kernels, "traced_platform", lambda: "cpu")
    caplog.set_level(logging.INFO)
    assert choose("halving", [EVEN, ELSEWHERE, ANY], 3) is ANY and said(caplog) == []


def test_choices_are_recorded_again_after_they_were_said():
    choose("halving", [EVEN, ANY], 2)
    with recorded() as found:
        for number in (2, 4, 3):
            choose("halving", [EVEN, ANY], number)
    choose("halving", [EVEN, ANY], 5)
    assert [str(choice) for choice in found] == [
        "halving: even",
        "halving: any; not even, odd numbers are not divided",
    ]


def test_a_case_that_no_kernel_computes_is_an_error():
    with pytest.raises(ValueError, match="no kernel computes halving of 3: even, odd numbers are not divided"):
        choose("halving", [EVEN, ELSEWHERE], 3)
