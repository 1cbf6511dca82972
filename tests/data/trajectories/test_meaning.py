"""Fields that change what a record means stop it: media, preferences, weights of the record. Others are counted."""

import pytest

from data.trajectories import Tally
from maverick_jax.errors import InputError
from tests.helpers.readings import ANSWER, ASK, read

CHAT = {"messages": [ASK, ANSWER]}
SHARED = {"conversations": [{"from": "human", "value": "Look."}, {"from": "gpt", "value": "I see."}]}

# ---- media -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [CHAT, SHARED, {"instruction": "Look.", "output": "I see."}])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("images", ["a.png"]),
        ("image", "x.png"),
        ("videos", ["a.mp4"]),
        ("audios", ["a.wav"]),
        ("image", {"bytes": "x"}),
    ],
)
def test_a_record_with_media_is_refused_by_the_fields_name(tmp_path, record, field, value):
    with pytest.raises(InputError, match=f"record 0, line 1: {field}: a picture, video or sound"):
        read(tmp_path, {**record, field: value})


def test_media_are_counted_as_malformed(tmp_path):
    tally = Tally()
    found = read(tmp_path, CHAT | {"images": ["a.png"]}, CHAT, tally=tally, malformed="skip")
    assert len(found) == 1 and tally.malformed == 1 and tally.problems[0].reason.startswith("images: ")


@pytest.mark.parametrize("empty", [None, [], "", [None]])
def test_an_empty_field_for_media_is_nothing(tmp_path, empty):
    assert len(read(tmp_path, CHAT | {"images": empty})) == 1


def test_media_of_a_message_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"messages\[0\].images: a picture"):
        read(tmp_path, {"messages": [ASK | {"images": ["a.png"]}, ANSWER]})


@pytest.mark.parametrize(
    "text", ["<image>What is it?", "<image>\nWhat is it?", "What is it?\n<image>", "a\n<image>\nb", "<video> What?",
             "<audio>What?", "x <|image|> y", "a <|vision_start|>"],
)  # fmt: skip
def test_the_place_of_a_picture_in_the_users_text_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"messages\[0\]: <\|?\w+\|?>: the place of a picture"):
        read(tmp_path, {"messages": [{"role": "user", "content": text}, ANSWER]})


@pytest.mark.parametrize("text", ["What does <image> mean in SVG?", '<image href="a.png"/>', "<video src=x></video>"])
def test_a_text_about_such_a_tag_is_read(tmp_path, text):
    assert len(read(tmp_path, {"messages": [{"role": "user", "content": text}, ANSWER]})) == 1


# ---- preferences -----------------------------------------------------------------------------------------------------

PAIR = {"chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "No."}]}


@pytest.mark.parametrize(
    "record",
    [
        PAIR, {"prompt": "x", "chosen": "y", "rejected": "z"}, CHAT | PAIR, CHAT | {"rejected_response": "No."},
        SHARED | {"chosen": {"from": "gpt", "value": "y"}}, {"instruction": "x", "output": "y", "rejected": "z"},
        {"prompt": "x", "completion": "y", "label": True}, CHAT | {"kto_tag": True},
        {"input": {"messages": [ASK]}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]},
    ],
)  # fmt: skip
def test_preferences_are_refused(tmp_path, record):
    with pytest.raises(InputError, match=r"record 0, line 1: \w+: preference data. Trajectories are demonstrations"):
        read(tmp_path, record)


@pytest.mark.parametrize("field", [{"label": "billing"}, {"chosen": ""}, {"rejected": False}, {"chosen_at": "noon"}])
def test_other_fields_with_similar_names_are_kept_and_counted(tmp_path, field):
    tally = Tally()
    assert read(tmp_path, CHAT | field, tally=tally)[0].extra == field
    assert tally.as_dict()["unknown_fields"] == dict.fromkeys(field, 1)


@pytest.mark.parametrize("field", [{"rejected": "No."}, {"label": False}, {"chosen": [ANSWER]}])
def test_preferences_inside_a_message_are_refused(tmp_path, field):
    name = next(iter(field))
    for record, path in (({"messages": [ASK, ANSWER | field]}, "messages"),
                         ({"conversations": [SHARED["conversations"][0], SHARED["conversations"][1] | field]},
                          "conversations")):  # fmt: skip
        with pytest.raises(InputError, match=rf"{path}\[1\].{name}: preference data"):
            read(tmp_path, record)


def test_nulls_that_fill_columns_are_left_out_and_counted(tmp_path):
    nulls = {"tool_calls": None, "images": None, "weight": None, "speed": None}
    tally = Tally()
    (found,) = read(tmp_path, {"messages": [ASK | nulls, ANSWER | nulls], "note": None}, tally=tally, unknown="refuse")
    assert found.extra == {} and [dict(step.extra) for step in found.steps] == [{}, {}]
    assert tally.as_dict()["unknown_fields"] == {}
    assert tally.as_dict()["left_out_fields"] == {
        "messages[].images": 2, "messages[].speed": 2, "messages[].tool_calls": 1, "note": 1}  # fmt: skip


# ---- weights of a record ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [{"weight": 0.5}, {"train": False}, {"loss": False}, {"mask": [0, 1]}, {"weight": 0}])
def test_a_weight_of_the_record_is_refused(tmp_path, field):
    with pytest.raises(InputError, match=f"record 0, line 1: {next(iter(field))}: .*the weight of a whole record"):
        read(tmp_path, CHAT | field)


@pytest.mark.parametrize("field", [{"weight": 1}, {"train": True}, {"loss": 0.34}, {"mask": []}])
def test_a_weight_of_one_and_a_measured_loss_are_kept(tmp_path, field):
    assert read(tmp_path, CHAT | field)[0].extra == field
