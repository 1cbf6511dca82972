"""Alpaca's form: an instruction with its input and the answer to learn."""

import pytest

from maverick_jax.errors import InputError
from tests.helpers.readings import learned, read, roles

RECORD = {"instruction": "Say it in French.", "input": "Ten.", "output": "Dix."}


def test_the_input_follows_the_instruction_and_the_output_is_learned(tmp_path):
    (found,) = read(tmp_path, RECORD)
    assert [step.message.text for step in found.steps] == ["Say it in French.\nTen.", "Dix."]
    assert found.provenance.format == "alpaca" and learned(found) == "Dix.<|eot|>"


@pytest.mark.parametrize("empty", [{"input": ""}, {"input": None}, {"input": " "}])
def test_an_empty_input_adds_nothing(tmp_path, empty):
    (found,) = read(tmp_path, RECORD | empty)
    assert found.steps[0].message.text == "Say it in French."


def test_system_and_history_come_first(tmp_path):
    record = RECORD | {"system": "Be brief.", "history": [["Hello.", "Bonjour."], ["Bye.", "Adieu."]]}
    (found,) = read(tmp_path, record, format="alpaca", unknown="refuse")
    assert roles(found) == ["SYSTEM", *["USER", "ASSISTANT"] * 3]
    assert learned(found) == "Bonjour.<|eot|>Adieu.<|eot|>Dix.<|eot|>"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output": ""}, "output: an empty turn"),
        ({"output": ["Dix.", "Neuf."]}, "output: expected text, got a list"),
        ({"instruction": "", "input": ""}, "instruction: an empty turn"),
        ({"history": [["Hello."]]}, r"history\[0\]: expected a pair of texts"),
        ({"output": '<tool_call>{"name": 1}</tool_call>'}, r"output: <tool_call>: calls as text"),
        ({"image": "x.png"}, "image: a picture"),
        ({"chosen": "Dix.", "rejected": "Neuf."}, "chosen: preference data"),
    ],
)
def test_malformed_records_are_refused(tmp_path, change, reason):
    with pytest.raises(InputError, match=f"record 0, line 1: {reason}"):
        read(tmp_path, RECORD | change)
