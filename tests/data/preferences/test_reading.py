"""Reading pairs: every form of the same facts gives equal ids and weights; defects give one error with their place."""

import json

import pytest

from data.preferences.reading import PairReader
from data.preferences.toy_shop import generate
from data.trajectories.formats import ours
from data.trajectories.toy_shop import generate as runs_of_the_shop
from maverick_jax.errors import InputError

USER, GOOD, BAD = "Is it sent?", "Yes, on Monday.", "No idea."
ASKED = [{"role": "user", "content": USER}]
said = lambda text: [{"role": "assistant", "content": text}]
turns = lambda text: [{"from": "gpt", "value": text}]
FORMS = {
    "trl": {"prompt": ASKED, "chosen": said(GOOD), "rejected": said(BAD)},
    "trl as text": {"prompt": USER, "chosen": GOOD, "rejected": BAD},
    "trl without prompt": {"chosen": ASKED + said(GOOD), "rejected": ASKED + said(BAD), "margin": 2.0},
    "trl with both": {"prompt": USER, "chosen": ASKED + said(GOOD), "rejected": ASKED + said(BAD)},
    "hh": {"chosen": f"\n\nHuman: {USER}\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: {USER}\n\nAssistant: {BAD}"},
    "sharegpt": {"conversations": [{"from": "human", "value": USER}], "chosen": turns(GOOD)[0], "rejected": turns(BAD)},
    "ms_swift": {"messages": ASKED + said(GOOD), "rejected_response": BAD},
    "ms_swift messages": {"messages": ASKED + said(GOOD), "rejected_messages": ASKED + said(BAD)},
    "ms_swift answers": {"messages": ASKED + said(GOOD), "rejected_response": said(BAD)},
    "ours": {"format": "maverick-pair", "version": 1, "prompt": ASKED, "chosen": said(GOOD), "rejected": said(BAD)},
}


def read(path, *records, **options):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(PairReader(**options).pairs(path))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_facts_give_equal_ids(form, tmp_path):
    (expected,) = read(tmp_path / "trl.jsonl", FORMS["trl"])
    (found,) = read(tmp_path / "pairs.jsonl", FORMS[form])
    assert (found.id, found.group) == (expected.id, expected.group)


def test_verdicts_on_single_answers_have_one_side(tmp_path):
    verdict = lambda good: {"prompt": USER, "completion": GOOD if good else BAD, "label": good}
    shared = {"conversations": [{"from": "human", "value": USER}, *turns(BAD)], "kto_tag": False}
    pairs = read(tmp_path / "verdicts.jsonl", verdict(True), verdict(False), form="unpaired")
    assert [(pair.chosen is None, pair.rejected is None) for pair in pairs] == [(False, True), (True, False)]
    assert read(tmp_path / "tags.jsonl", shared)[0].id == pairs[1].id


def test_calls_of_ms_swift_are_calls(tmp_path):
    call = {"role": "tool_call", "content": json.dumps({"name": "find", "arguments": {"n": 1}})}
    messages = [*ASKED, call, {"role": "tool_response", "content": "sent"}, *said(GOOD)]
    (pair,) = read(tmp_path / "swift.jsonl", {"messages": messages, "rejected_response": BAD})
    assert [len(step.message.calls) for step in pair.chosen.steps] == [0, 1, 0, 0]
    assert pair.rejected.steps[-1].message.text == BAD and pair.chosen.steps[-1].message.text == GOOD


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"messages": ASKED + said(GOOD)}, r"record 0, line 1: not a pair: it has 'messages'. Tried ours: "),
        ({"chosen": GOOD, "rejected": BAD}, r"chosen: a text without a prompt; expected `prompt` too"),
        ({"prompt": USER, "chosen": GOOD, "rejected": GOOD}, r"the chosen and the rejected side say the same"),
        ({"prompt": USER, "chosen": GOOD, "rejected": ""}, r"rejected: completion: an empty turn"),
        ({**FORMS["trl"], "images": ["a.png"]}, r"chosen: images: a picture"),
        ({"prompt": USER, "completion": GOOD, "label": "yes"}, r"label: 'yes'; expected true or false"),
        ({**FORMS["ours"], "chosed": 1}, r"chosed: unknown field; did you mean chosen\?"),
        ({**FORMS["ours"], "chosen": "Yes"}, r"chosen: expected a list of objects with `role`"),
        ({"messages": ASKED, "rejected_response": BAD}, r"messages: the last role is 'user'; expected assistant"),
    ],
)
def test_a_defect_is_one_error_with_its_place(record, why, tmp_path):
    with pytest.raises(InputError, match=why):
        read(tmp_path / "bad.jsonl", record)


def test_malformed_records_are_skipped_and_counted_if_wanted(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps(FORMS["trl"]) + "\n{\n" + json.dumps(FORMS["hh"]) + "\n")
    reader = PairReader(malformed="skip", form="trl")
    assert len(list(reader.pairs(path))) == 1
    assert (reader.tally.records, reader.tally.trajectories, reader.tally.malformed) == (3, 1, 2)


def test_runs_of_one_task_with_other_outcomes_are_pairs(tmp_path):
    runs = [run for run in runs_of_the_shop(60) if run.provenance.task == "change"]
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(ours.write(run) + "\n" for run in runs))
    good, bad = ([run for run in runs if run.outcome.success is wanted] for wanted in (True, False))
    pairs = list(PairReader(make="outcomes", per_task=1000).pairs(path))
    assert len(pairs) == len(good) * len(bad) > 0
    assert all(pair.chosen.outcome.success and not pair.rejected.outcome.success for pair in pairs)
    few = list(PairReader(make="outcomes", per_task=len(good)).pairs(path))
    assert len({id(pair.chosen) for pair in few}) == len(good), "every success is used before one is used again"


def test_corrupted_runs_contradict_what_they_show(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(ours.write(run) + "\n" for run in runs_of_the_shop(30)))
    pairs = list(PairReader(make="corruptions").pairs(path))
    kinds = {pair.origin.removeprefix("corruptions: ") for pair in pairs}
    assert kinds == {"wrong number", "wrong argument", "wrong tool", "stops early"}
    for pair in pairs:
        if pair.origin.endswith(("number", "argument")):
            differ = [a != b for a, b in zip(pair.chosen.steps, pair.rejected.steps, strict=True)]
            assert differ == [False] * (len(differ) - 1) + [True], "only the last message differs"
    assert [pair.id for pair in PairReader(make="corruptions").pairs(path)] == [pair.id for pair in pairs]


def test_the_shipped_pairs_are_those_that_the_program_makes(tmp_path):
    from data.sources.files import ASSETS

    shipped = (ASSETS / "toy_shop_pairs.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in shipped] == generate()
    pairs = list(PairReader().pairs(ASSETS / "toy_shop_pairs.jsonl"))
    assert len({pair.group for pair in pairs}) == len(pairs) == 160


def test_real_pairs_are_read(tmp_path):
    from tests.conftest import REPOSITORY

    path = REPOSITORY.parent / "shared" / "data" / "preferences" / "hh_harmless_1500.jsonl"
    if not path.exists():
        pytest.skip("the public HH pairs are not at hand")
    some = tmp_path / "hh.jsonl"
    some.write_text("".join(path.read_text().splitlines(keepends=True)[:200]))
    reader = PairReader(malformed="skip")
    pairs = list(reader.pairs(some))
    assert reader.tally.formats == {"hh": len(pairs)} and len(pairs) + reader.tally.malformed == 200
    assert len(pairs) > 150
