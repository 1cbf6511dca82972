"""Pairs in rows: both sides lie side by side, fields say which, and what does not fit is counted."""

import json

import numpy as np
import pytest

from data.config import DataConfig
from data.rows.dataset import open_dataset
from data.rows.pairs import PAIR_FIELDS
from data.trajectories.kinds import TokenKind
from maverick_jax.errors import InputError
from tests.helpers.pair_rows import short_pair, write_pairs


def opened(path, split="train", options=None, **changes):
    source = {"path": str(path), "format": "preferences", "preferences": options or {}}
    base = {"sources": {"pairs": source}, "sequence_length": 512, "batch_size": 2, "held_out_fraction": 0.0,
            "cache_dir": str(path.parent / "cache")}  # fmt: skip
    return open_dataset(DataConfig.model_validate(base | changes), split, seed=0)


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path / "pairs.jsonl", 20)


@pytest.mark.parametrize("cell", [None, 64])
def test_both_sides_of_a_pair_lie_in_one_row(pairs, cell):
    data = opened(pairs, cell=cell)
    texts = []
    for index in range(data.num_rows()):
        row = data.row(index)
        for pair in range(1, row["pair_ids"].max() + 1):
            at = [np.flatnonzero((row["pair_ids"] == pair) & (row["sides"] == side)) for side in (1, 2)]
            segments = [set(row["segment_ids"][places].tolist()) for places in at]
            assert [len(found) for found in segments] == [1, 1] and segments[0] != segments[1]
            texts.append([data.tokenizer.decode(row["labels"][places].tolist()) for places in at])
    assert len(texts) == 20
    wanted = {(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in map(short_pair, range(20))}
    assert all(any(a in x and b in y for a, b in wanted) for x, y in texts)


def test_only_what_the_assistant_writes_after_the_first_difference_counts(pairs):
    row = opened(pairs).row(0)
    counts = row["loss_weights"] > 0
    assert set(row["kinds"][counts].tolist()) <= {TokenKind.DECISION, TokenKind.FINAL_ANSWER}
    first = [np.flatnonzero(counts & (row["pair_ids"] == 1) & (row["sides"] == side))[0] for side in (1, 2)]
    assert row["labels"][first[0]] != row["labels"][first[1]]
    kept = opened(pairs, options={"prefix": "keep"}).row(0)["loss_weights"] > 0
    assert kept.sum() > counts.sum() and (kept | ~counts).all()


def test_the_tail_is_what_the_longer_side_has_more(pairs):
    data = opened(pairs)
    for row in map(data.row, range(data.num_rows())):
        for pair in range(1, row["pair_ids"].max() + 1):
            here = (row["pair_ids"] == pair) & (row["loss_weights"] > 0)
            counts = [int((here & (row["sides"] == side)).sum()) for side in (1, 2)]
            assert int(row["pair_tail"][here].sum()) == max(counts) - min(counts)


def test_turns_are_numbered_from_both_ends(tmp_path):
    messages = [{"role": role, "content": text} for role, text in [("user", "a"), ("assistant", "b"), ("user", "c"),
                                                                   ("assistant", "d")]]  # fmt: skip
    other = [*messages[:1], {"role": "assistant", "content": "x"}, *messages[2:], *messages[2:]]
    path = tmp_path / "turns.jsonl"
    path.write_text(json.dumps({"chosen": messages, "rejected": other}) + "\n")
    row = opened(path).row(0)
    counts = row["loss_weights"] > 0
    of = lambda side: [row[name][counts & (row["sides"] == side)].tolist() for name in PAIR_FIELDS[2:4]]
    assert of(1) == [[0, 1], [1, 0]]
    assert of(2) == [[0, 1, 2], [2, 1, 0]]


def test_ends_of_sides_and_of_labelled_turns_are_marked_at_their_own_tokens(tmp_path):
    message = lambda role, text, **more: {"role": role, "content": text, **more}
    good, bad = message("assistant", "b", turn_label="good"), message("assistant", "no", turn_label="premature")
    record = {
        "chosen": [message("user", "a"), good],
        "rejected": [message("user", "a"), good, message("user", "c"), bad],
    }
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps(record | {"task": "other"}) + "\n")
    data = opened(path)
    row, eot = data.row(0), data.tokenizer.controls["<|eot|>"]
    (ends,), (turns,) = np.nonzero(row["side_ends"]), np.nonzero(row["turn_labels"] != 255)
    assert row["side_ends"][ends].tolist() == [1, 2, 3, 4] and row["segment_ids"][ends].tolist() == [1, 2, 3, 4]
    assert (row["segment_ids"][ends + 1] != row["segment_ids"][ends]).all() and (row["tokens"][turns] == eot).all()
    assert row["turn_labels"][turns].tolist() == [0, 0, 2, 0, 0, 2]
    path.write_text(
        json.dumps({"chosen": record["chosen"], "rejected": [message("user", "a"), {**bad, "turn_label": "bad"}]})
    )
    with pytest.raises(InputError, match=r"labels.jsonl.*messages\[1\].turn_label: 'bad'; expected good, inconsistent"):
        opened(path)


def test_pairs_that_do_not_fit_are_left_out_and_counted(pairs, tmp_path, caplog):
    with pairs.open("a") as file:
        file.write(json.dumps({"prompt": "Tell me.", "chosen": "x" * 600, "rejected": "No."}) + "\n")
    data = opened(pairs)
    assert data.sources[0].plan.counts == {"too_long": 1}
    assert "1 of 21 pairs do not fit into data.sequence_length (512)" in caplog.text
    with pytest.raises(InputError, match=r"no pair fits into data.sequence_length \(32\); the shortest has \d+ tokens"):
        opened(pairs, sequence_length=32)


def test_pairs_of_one_task_are_on_one_side_of_the_split(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(short_pair(i) | {"task": i % 5}) + "\n" for i in range(20)))
    train, held_out = (opened(path, split, held_out_fraction=0.2) for split in ("train", "eval"))
    tasks = [{i % 5 for i in data.sources[0].plan.pairs.tolist()} for data in (train, held_out)]
    assert tasks == [{0, 1, 2, 3}, {4}]
    path.write_text("".join(json.dumps(short_pair(i) | {"task": 1}) + "\n" for i in range(3)))
    with pytest.raises(InputError, match="all pairs are of one task, which is not split"):
        opened(path, held_out_fraction=0.2)


def test_other_weights_and_observations_with_a_weight(pairs):
    half = opened(pairs, options={"kind_weights": {"final_answer": 0.5}}).row(0)
    assert set(half["loss_weights"].tolist()) == {0.0, 0.5}
    with pytest.raises(ValueError, match="observation: 1: the assistant does not write these tokens; expected 0"):
        opened(pairs, options={"kind_weights": {"observation": 1.0}})


def test_pairs_do_not_mix_with_texts(pairs):
    text = {"path": "package:tinyshakespeare"}
    source = {"path": str(pairs), "format": "preferences"}
    with pytest.raises(ValueError, match="text holds no pairs, and others have kind: preferences"):
        DataConfig.model_validate({"sources": {"pairs": source, "text": text}})


def test_mismatched_answers_follow_another_prompt_and_are_no_sides(pairs):
    """For each side of each pair there is one, marked as such; only its answer counts."""
    data = opened(pairs, options={"mismatched": True})
    plain = opened(pairs)
    assert plain.num_rows() < data.num_rows()
    texts, sides = [], 0
    prompts = {p["prompt"][0]["content"]: {p[side][0]["content"] for side in ("chosen", "rejected")}
               for p in map(short_pair, range(20))}  # fmt: skip
    for row in map(data.row, range(data.num_rows())):
        sides += len({tuple(x) for x in np.stack([row["pair_ids"], row["sides"]], 1)[np.isin(row["sides"], (1, 2))]})
        for pair in np.unique(row["pair_ids"][row["sides"] == 3]).tolist():
            here = row["pair_ids"] == pair
            assert (row["sides"][here] == 3).all() and len(set(row["segment_ids"][here])) == 1
            whole = data.tokenizer.decode(row["labels"][here].tolist())
            counted = data.tokenizer.decode(row["labels"][here & (row["loss_weights"] > 0)].tolist())
            texts.append((whole, counted))
            assert not row["side_ends"][here].any()
    assert sides == 40 and len(texts) == 40
    for whole, answer in texts:
        (prompt,) = (prompt for prompt in prompts if prompt in whole)
        assert answer not in prompts[prompt] and any(answer in answers for answers in prompts.values())


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([short_pair(1)] * 2, "answers to two prompts or more"),
        ([{**short_pair(1), "rejected": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"},
                                         {"role": "assistant", "content": "c"}]}, short_pair(2)],
         "sides that differ in their last message alone"),
    ],
)  # fmt: skip
def test_mismatched_answers_need_several_prompts_and_single_answers(tmp_path, records, said):
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(InputError, match=said):
        opened(path, options={"mismatched": True})
