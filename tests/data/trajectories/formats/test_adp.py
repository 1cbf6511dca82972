"""ADP: what parallel calls of one message share."""

import pytest

from maverick_jax.errors import InputError
from tests.helpers.readings import calls, learned, read, roles


def record(*fields):
    calls = [{"class_": "api_action", "function": "f", "kwargs": {"n": n}, **given} for n, given in enumerate(fields)]
    results = [{"class_": "text_observation", "content": "x", "source": "environment"} for _ in fields]
    ask = {"class_": "text_observation", "content": "Go.", "source": "user"}
    return {"content": [ask, *calls, *results, {"class_": "message_action", "content": "Done."}]}


@pytest.mark.parametrize(
    ("rewards", "total"), [([1.0, 0.5], 1.5), ([None, 0.5], 0.5), ([-1, 1, 2], 2.0), ([None, None], None)]
)
def test_the_reward_of_parallel_calls_is_the_sum_of_theirs(tmp_path, rewards, total):
    (found,) = read(tmp_path, record(*({"reward": reward} for reward in rewards)))
    assert [step.reward for step in found.steps if step.message.calls] == [total]


def test_parallel_calls_have_one_weight(tmp_path):
    (found,) = read(tmp_path, record({"train": False}, {"train": False}))
    assert learned(found) == "Done.<|eot|>"
    with pytest.raises(InputError, match=r"content\[1\]: weight: parallel calls form one message"):
        read(tmp_path, record({"train": False}, {}))


def test_a_message_and_the_calls_after_it_are_one_turn(tmp_path):
    found = record({}, {})
    said = {"class_": "message_action", "content": "I look.", "description": "Hm.", "mood": "good"}
    found["content"].insert(1, said)
    (found,) = read(tmp_path, found)
    assert roles(found) == ["USER", "ASSISTANT", "TOOL", "TOOL", "ASSISTANT"]
    message = found.steps[1].message
    assert (message.text, message.thought, calls(found)) == ("I look.", "Hm.", [("f", {"n": 0}), ("f", {"n": 1})])
    assert found.steps[1].extra == {"message.mood": "good"}


def test_only_the_message_directly_before_calls_belongs_to_them(tmp_path):
    found = record({})
    found["content"][1:1] = [{"class_": "message_action", "content": text} for text in ("Well.", "I look.")]
    (found,) = read(tmp_path, found)
    assert [step.message.text for step in found.steps[1:]] == ["Well.", "I look.", "x", "Done."]
