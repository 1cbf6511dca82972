"""The rows of the schema heads' task ask for what they declare, a chunk after it."""

import numpy as np

from benchmarks.schema_heads import CHUNK, GIVES, QUESTION, SECOND, TOOLS, asked, model_config, rows
from maverick_jax.reasoning import Mark


def test_answers_follow_from_the_declarations_a_chunk_before():
    batch = rows(np.random.default_rng(0), 16, SECOND)
    for tokens, labels, weights, marks in zip(
        batch["tokens"], batch["labels"], batch["loss_weights"], batch["marks"], strict=True
    ):
        size = int((marks == Mark.SCHEMA).sum())
        assert 2 * 3 <= size <= 3 * TOOLS <= CHUNK and marks[:size].all()
        tools = {takes: (name, gives) for takes, name, gives in tokens[:size].reshape(-1, 3).tolist()}
        assert weights[: QUESTION + 1].sum() == 0
        kind, asked_for = tokens[QUESTION : QUESTION + 2].tolist()
        wanted = [tools[asked_for][1]] if kind == GIVES else []
        for _ in range(kind if kind != GIVES else 0):
            name, gives = tools[asked_for]
            wanted += [name, asked_for]
            asked_for = gives
        first = slice(QUESTION + 1, QUESTION + 2 + len(wanted))
        assert labels[first].tolist() == [*wanted, 0] and weights[first].all()


def test_requests_that_are_judged_have_all_tools_and_no_answer():
    batch, answers = asked(np.random.default_rng(0), 2)
    assert (batch["tokens"][:, QUESTION] == 2).all() and not batch["tokens"][:, QUESTION + 2 :].any()
    assert ((batch["marks"] == Mark.SCHEMA).sum(axis=1) == 3 * TOOLS).all()
    assert answers.shape == (len(batch["tokens"]), 5) and not answers[:, 4].any()


def test_the_control_differs_by_the_heads_alone():
    heads = model_config(True)
    assert heads.model_copy(update={"reasoning_heads": None}) == model_config(False)
    assert [spec.reasoning for spec in heads.layers] == [True, True, True, False]
