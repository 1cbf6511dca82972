"""The classifier's form: what it is asked, which answers count, and that anything else is a failure of the guard."""

import dataclasses

import pytest

from data.guard import Gate
from data.policy import ToolPolicy
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Message, Role, ToolCall
from tests.helpers.scripted_engine import ScriptedEngine
from train.guards import SafetyClassifier
from train.guards.classifier import asking, categories_in, prompt_of

CALL = Message(Role.ASSISTANT, calls=(ToolCall("run_code", {"code": "rm -rf /"}),))
RUN = Trajectory([
    Step(Message(Role.SYSTEM, "Be brief.")), Step(Message(Role.USER, "List the files.")),
    Step(Message(Role.ASSISTANT, calls=(ToolCall("run_code", {"code": "ls"}),))), Step(Message(Role.TOOL, "a.txt")),
])  # fmt: skip


def test_the_prompt_has_the_categories_and_the_conversation_up_to_the_call():
    text = prompt_of(dataclasses.replace(RUN, steps=(*RUN.steps, Step(CALL))))
    assert text.startswith("Task: Check if there is unsafe content in 'Agent' messages")
    assert "S14: Code Interpreter Abuse." in text and text.count("\nS") >= 14
    said = text.split("<BEGIN CONVERSATION>")[1].split("<END CONVERSATION>")[0].strip().split("\n\n")
    assert said == ["User: List the files.", 'Agent: [run_code(code="ls")]', "Tool: a.txt",
                    'Agent: [run_code(code="rm -rf /")]']  # fmt: skip


def test_answers_in_the_form_are_read_and_no_others():
    assert categories_in(" safe\n") == []
    assert categories_in("unsafe\nS2,S14") == ["S2", "S14"]
    for wrong in ("", "unsafe", "unsafe\n", "unsafe\nS99", "safe\nS1", "It is safe.", "UNSAFE\nS1"):
        with pytest.raises(ValueError, match="the classifier answered"):
            categories_in(wrong)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(("safe", 0.01), "AA"), (("unsafe\nS14", 0.9), "AB"), (("unsafe\nS14", 0.99), "CB"), (("perhaps", 0.0), "AB")],
)
def test_the_gate_holds_back_by_probability_and_fails_closed(answer, expected):
    tools = {"run_code": {"privilege": 1}, "admin": {"privilege": 4}}
    policy = ToolPolicy.model_validate({"tools": tools, "granted": 4, "thresholds": (1, 0.95, 0.5, 0.2, 0.05)})
    gate = Gate(policy, [SafetyClassifier(lambda prompt: answer)])
    found = [gate.check(RUN, Message(Role.ASSISTANT, calls=(ToolCall(name, {}),))) for name in ("run_code", "admin")]
    assert "".join(verdict.ruling.name[0] for verdict in found) == expected


def test_an_engine_is_asked_for_both_words_and_for_its_answer():
    tokenizer = load_tokenizer("bytes")
    script = [*tokenizer.encode("unsafe\nS14"), tokenizer.controls["<|eot|>"]]
    with ScriptedEngine(tokenizer, lambda request: script) as engine:
        answer, score = asking(engine, tokenizer)("Is this safe?")
    assert answer == "unsafe\nS14" and 0 < score < 0.5, "by the made-up scores the longer word is less likely"
