"""Weights that records give their messages, under the names of several programs: honored or refused, never ignored."""

import pytest

from maverick_jax.errors import InputError
from tests.helpers import trajectory_samples as samples
from tests.helpers.readings import ANSWER, ASK, learned, read

WRONG = {"role": "assistant", "content": "It is nine."}


def conversation(**fields):
    return {"messages": [ASK, WRONG | fields, {"role": "user", "content": "Sure?"}, ANSWER | {"train": True}]}


@pytest.mark.parametrize(
    "fields",
    [
        {"train": False}, {"training": False}, {"trainable": False}, {"loss": False}, {"loss_mask": 0}, {"weight": 0},
        {"loss_weight": 0.0}, {"loss_scale": 0}, {"masked": True}, {"train": False, "weight": 0.0},
    ],
)  # fmt: skip
def test_a_message_is_not_learned_if_it_says_so(tmp_path, fields):
    (found,) = read(tmp_path, conversation(**fields), unknown="refuse")
    assert learned(found) == "It is ten.<|eot|>"


@pytest.mark.parametrize("fields", [{"train": True}, {"loss_mask": 1}, {"masked": False}, {"train": None}, {}])
def test_a_message_is_learned_otherwise(tmp_path, fields):
    (found,) = read(tmp_path, conversation(**fields), unknown="refuse")
    assert learned(found) == "It is nine.<|eot|>It is ten.<|eot|>"


def test_a_number_counts_beside_a_switch(tmp_path):
    assert read(tmp_path, conversation(train=True, weight=0.5))[0].steps[1].weight == 0.5


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"train": False, "weight": 1}, r"messages\[1\]: weight: 1, train: False: these contradict each other"),
        ({"train": True, "masked": True}, r"messages\[1\]: train: True, masked: True: these contradict"),
        ({"train": "no"}, r"messages\[1\].train: expected true or false or a number, got text"),
        ({"loss_mask": 2}, r"messages\[1\].loss_mask: 2; expected true or false"),
        ({"mask": True}, r"messages\[1\].mask: not read: programs disagree"),
        ({"mask": False}, r"messages\[1\].mask: not read: programs disagree"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 2, "train": False}]}, r"messages\[1\].train_detail: not"),
        ({"content": [{"type": "text", "text": "x", "train": False}]}, r"content\[0\].train: whether to learn a part"),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": ""}, "weight": 0}]},
            r"calls\[0\].weight: whether",
        ),
    ],
)
def test_contradictions_and_weights_of_parts_are_refused(tmp_path, fields, reason):
    with pytest.raises(InputError, match=reason):
        read(tmp_path, conversation(**fields))


LAST = {"openai": "messages", "tau_bench": "traj", "swe_agent": "history", "sharegpt": "conversations", "atif": "steps",
        "adp": "content", "ours": "messages", "prompt_completion": "completion"}  # fmt: skip


@pytest.mark.parametrize("name", LAST)
@pytest.mark.parametrize("flag", [{"train": False}, {"weight": 0}, {"masked": True}])
def test_every_format_with_messages_reads_the_flag(tmp_path, name, flag):
    record = samples.ALL[name]()
    record[LAST[name]][-1] |= {"weight": None} | flag
    (found,) = read(tmp_path, record, unknown="refuse")
    assert found.steps[-1].weight == 0
