"""Made questions of ProsQA follow its rule, and rows hold the question, its latents, its path and the answer."""

import json

import numpy as np
import pytest

from benchmarks import latent_thoughts as chain
from benchmarks import plain_students, prosqa
from data.trajectories.kinds import TokenKind
from maverick_jax.text import load_tokenizer

TOKENIZER = load_tokenizer(chain.TOKENIZER)


def test_made_questions_have_one_right_option_and_a_shortest_path():
    random = np.random.RandomState(0)
    for nodes in (prosqa.NODES, prosqa.FEW):
        check_made([prosqa.made(random, nodes) for _ in range(100)], 3 if nodes == prosqa.NODES else 1)


def check_made(questions: list[prosqa.Question], least: int) -> None:
    for question in questions:
        own = prosqa.reached(question.edges, question.root)
        right, wrong = question.options
        assert wrong not in own and question.path[-1] == right and least <= len(question.path) <= 6
        assert len(prosqa.path_to(right, own)) == len(question.path)
        steps = zip([question.root, *question.path], question.path, strict=False)
        assert set(steps) <= set(question.edges)
        assert not {right, wrong} & {one for one, _ in question.edges}


def test_a_published_question_keeps_the_order_of_its_sentences():
    row = {"question": "Every b is a c. Tom is a b. Is Tom a c or d?", "steps": ["Tom is a b.", "Every b is a c."],
           "idx_to_symbol": ["Tom", "b", "c", "d"], "root": 0, "target": 2, "neg_target": 3}  # fmt: skip
    assert prosqa.published(json.dumps(row)) == prosqa.Question([(1, 2), (0, 1)], 0, (2, 3), [1, 2])


@pytest.mark.parametrize(("replaced", "left"), [(0, 3), (2, 1), (4, 0)])
def test_latents_take_the_place_of_the_first_steps(replaced, left):
    """Always as many as the stage says, so that their number does not tell the length of the path."""
    question = prosqa.Question([(0, 2), (2, 3), (3, 4), (1, 5)], 0, (4, 5), [2, 3, 4])
    ids, kinds = prosqa.written(question, replaced, True, TOKENIZER, np.random.RandomState(0))
    assert (kinds == TokenKind.USER).sum() == 3 * 4 + 3 and (kinds == TokenKind.THOUGHT).sum() == left
    assert (ids == chain.LATENT).sum() == replaced
    assert kinds[-1] == TokenKind.FINAL_ANSWER and ids[-1] == ids[7] and ids[-1] in ids[13:15]  # node 4
    plain, _ = prosqa.written(question, 0, False, TOKENIZER, np.random.RandomState(0))
    assert len(plain) == 16


def test_variants_have_equal_updates_of_their_own_rows(tmp_path):
    updates = {name: sum(part.updates for part in parts) for name, parts in prosqa.VARIANTS.items()}
    assert updates["text"] == updates["latents"] == updates["pauses"] == updates["none"] - updates["start"]
    for variant, parts in prosqa.VARIANTS.items():
        stages = prosqa.run_config(variant, 0, tmp_path)["stages"]
        assert [stage["steps"] for stage in stages] == [part.updates for part in parts]
        kinds = [source["kind"] for stage in stages for source in stage["data"]["sources"].values() if source]
        assert set(kinds) == {"prosqa"} and len(kinds) == len(stages)


def test_students_are_plain_and_read_the_rows_of_pauses(tmp_path):
    pauses = chain.run_config("pauses", 0, tmp_path)
    for variant in plain_students.VARIANTS:
        found = plain_students.student_config(variant, 0, tmp_path)
        assert found["model"]["latent"] is None and found["stages"] == pauses["stages"]
        assert (found["objective"] == "trajectory") == (variant == "deep, alone")
        assert found["model"]["num_hidden_layers"] == (2 if variant == "shallow" else 8)
