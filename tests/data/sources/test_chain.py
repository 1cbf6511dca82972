"""Pointer chasing: what a question says, how a thought becomes latent, and which labels are learned."""

import numpy as np
import pydantic
import pytest

from data.config import DataConfig
from data.latents import LatentSteps
from data.rows.dataset import open_dataset
from data.sources.chain import ChainSource
from data.trajectories.kinds import TokenKind
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer

BYTES = load_tokenizer("bytes_thinking")
START, END, LATENT = (BYTES.controls[name] for name in (
    "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>", "<|reasoning_reserved_special_token_0|>"
))  # fmt: skip

ASKED = 3 * 8 + 1
"""Tokens of a question."""


def documents(source: ChainSource) -> list[tuple[list[int], list[TokenKind]]]:
    found = []
    for ids, kinds, lengths in source.blocks("chain", BYTES):
        ends = np.cumsum(lengths)
        for begin, end in zip(ends - lengths, ends, strict=True):
            found.append((ids[begin:end].tolist(), [TokenKind(kind) for kind in kinds[begin:end]]))
    return found


def followed(text: str, hops: int) -> str:
    """The symbols on the way of a question, from the text alone."""
    *arrows, at = text.split(";")
    arrows = dict(arrows)
    way = ""
    for _ in range(hops):
        at = arrows[at]
        way += at
    return way


@pytest.mark.parametrize("replaced", [0, 1, 3])
def test_the_thought_follows_the_arrows_of_one_cycle(replaced):
    for ids, _ in documents(ChainSource(documents=50, latents=LatentSteps(replaced=replaced, per_step=2))):
        question = BYTES.decode(ids[:ASKED])
        way = followed(question, 3)
        assert followed(question, 8)[-1] == question[-1] and len(set(followed(question, 8))) == 8
        assert ids[ASKED:] == [START, *[LATENT] * 2 * replaced, *way[replaced:].encode(), END, *way[-1].encode()]


def test_kinds_say_what_the_model_writes():
    kinds = documents(ChainSource(documents=1, latents=LatentSteps(replaced=1)))[0][1][ASKED:]
    assert kinds == [TokenKind.CONTROL, TokenKind.LATENT, TokenKind.THOUGHT, TokenKind.THOUGHT, TokenKind.CONTROL,
                     TokenKind.FINAL_ANSWER]  # fmt: skip
    kinds = documents(ChainSource(documents=1, latents=LatentSteps(replaced=3)))[0][1][ASKED:]
    assert kinds == [TokenKind.CONTROL, *[TokenKind.LATENT] * 4, TokenKind.FINAL_ANSWER]


def test_without_thoughts_the_answer_follows_the_question():
    for ids, kinds in documents(ChainSource(documents=20, thoughts=False)):
        assert ids[ASKED:] == list(followed(BYTES.decode(ids[:ASKED]), 3)[-1].encode())
        assert kinds[ASKED:] == [TokenKind.FINAL_ANSWER]


def test_the_same_questions_are_asked_in_every_form_and_length():
    forms = [{"thoughts": False}, {"latents": LatentSteps(replaced=2, mix=0.5)}, {"documents": 5000}]
    asked = [[ids[:ASKED] for ids, _ in documents(ChainSource(**{"documents": 40, **form}))][:40] for form in forms]
    assert asked[0] == asked[1] == asked[2]
    assert asked[0] != [ids[:ASKED] for ids, _ in documents(ChainSource(documents=40, corpus_seed=1))]


def test_latents_have_no_weight_in_rows_and_the_rest_of_the_answer_has(tmp_path):
    sources = {"chain": {"kind": "chain", "documents": 30, "latents": {"replaced": 2}}}
    config = DataConfig.model_validate(
        {"sources": sources, "tokenizer": "bytes_thinking", "sequence_length": 64, "cache_dir": str(tmp_path)}
    )
    row = open_dataset(config, "train", seed=0).row(0)
    assert row["segment_ids"].tolist() == [1] * 31 + [2] * 31 + [0] * 2
    names = [TokenKind(kind).name for kind in row["kinds"][24:30]]
    assert names == ["CONTROL", "LATENT", "LATENT", "THOUGHT", "CONTROL", "FINAL_ANSWER"]
    assert row["loss_weights"][:31].tolist() == [0] * 24 + [1, 0, 0, 1, 1, 1] + [0]


@pytest.mark.parametrize(
    ("tokenizer", "length", "expected"),
    [
        ("bytes", 32, "data.sources.chain: tokenizer bytes has no control token .*; expected data.tokenizer: bytes_th"),
        ("bytes_thinking", 30, "data.sequence_length: 30; expected at least 31, the longest document of source chain"),
    ],
)
def test_what_does_not_fit_is_refused(tokenizer, length, expected, tmp_path):
    given = {"sources": {"chain": {"kind": "chain"}}, "sequence_length": length, "cache_dir": str(tmp_path)}
    config = DataConfig.model_validate({**given, "tokenizer": tokenizer})
    with pytest.raises(InputError, match=expected):
        open_dataset(config, "train", seed=0)


def test_a_way_round_the_whole_cycle_is_refused():
    with pytest.raises(pydantic.ValidationError, match=r"hops \(8\) must be less than symbols \(8\)"):
        ChainSource(hops=8)
