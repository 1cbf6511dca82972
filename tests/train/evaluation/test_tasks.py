"""Evaluation on tasks: prompts, counts of answers, and errors that are found before a model runs."""

import copy
import io
import json
import math

import jax
import numpy as np
import pytest
from rich.console import Console

from data.tasks.toy_shop_orders import ToyShopOrders
from maverick_jax.errors import InputError
from maverick_jax.inference import Sampling
from maverick_jax.inference.answers import answers
from maverick_jax.sharding import single_device_mesh
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Conversation, Message, Role, ToolCall, render
from tests.helpers import tiny
from tests.helpers.folders import bytes_model
from train.evaluate import evaluate
from train.evaluation.tables import show
from train.evaluation.tasks import open_tasks, run_task

BYTES = load_tokenizer("bytes")
STOP = BYTES.controls["<|eot|>"]


@pytest.fixture
def shop(tmp_path):
    """Four questions about orders."""
    path = tmp_path / "shop.yaml"
    path.write_text("tasks: {orders: {kind: toy_shop_orders, count: 9, limit: 4, max_tokens: 40}}\n")
    (opened,) = open_tasks([str(path)], BYTES)
    return opened


def ids(text: str, stop: bool = True) -> list[int]:
    return [*BYTES.encode(text), *([STOP] if stop else [])]


def test_the_prompt_is_the_conversation_with_the_header_of_an_answer(shop):
    assert (shop.name, len(shop.examples), len(shop.prompts)) == ("orders", 4, 4)
    assert list(shop.examples) == ToyShopOrders(count=9).examples()[:4]
    shown = BYTES.decode(shop.prompts[0], controls=True)
    assert shown.endswith("<|header_start|>assistant<|header_end|>\n\n") and '"sent": ' in shown
    asked = []
    run_task(shop, lambda prompts, most: asked.append((prompts, most)) or [ids("x")] * 4, BYTES)
    assert asked == [(shop.prompts, 40)]


def test_correct_wrong_and_malformed_answers_are_counted(shop):
    right = [example.references[0] for example in shop.examples]
    call = Conversation((Message(Role.USER, "a"), Message(Role.ASSISTANT, calls=(ToolCall("find_order", {}),))))
    called = render(call, BYTES).ids.tolist()
    called = called[len(render(Conversation(call.messages[:1]), BYTES, add_generation_prompt=True).ids) :]
    found = run_task(shop, lambda prompts, most: [ids(right[0]), ids(right[1], False), called, ids("")], BYTES)
    assert {key: found[key] for key in ("n", "mean", "correct", "not_understood")} == {
        "n": 4, "mean": 0.25, "correct": 1, "not_understood": 2}  # fmt: skip
    assert found["standard_error"] == pytest.approx(np.std([1, 0, 0, 0], ddof=1) / math.sqrt(4))
    reasons = [example["reason"] for example in found["examples"]]
    assert reasons == ["", f"did not end within {len(right[1])} tokens", "called find_order instead of answering",
                       "is empty"]  # fmt: skip
    assert json.loads(json.dumps(found)) == found and found["license"] == "Apache-2.0"


def test_one_example_has_no_standard_error_and_equal_scores_have_zero(shop):
    one = shop._replace(examples=shop.examples[:1], prompts=shop.prompts[:1])
    found = run_task(one, lambda prompts, most: [ids(one.examples[0].references[0])], BYTES)
    assert (found["mean"], found["standard_error"]) == (1.0, None)
    assert run_task(shop, lambda prompts, most: [ids("x")] * 4, BYTES)["standard_error"] == 0


def test_a_text_prompt_is_unchanged_and_its_answer_needs_no_end(tmp_path):
    path = tmp_path / "q.yaml"
    (tmp_path / "q.jsonl").write_text('{"prompt": "1 + 1 =", "answer": 2}\n')
    path.write_text(f"tasks: {{q: {{kind: questions, path: {tmp_path / 'q.jsonl'}, chat: false, match: numeric}}}}\n")
    (opened,) = open_tasks([str(path)], BYTES)
    assert opened.prompts == [[BYTES.bos_id, *BYTES.encode("1 + 1 =")]]
    assert run_task(opened, lambda prompts, most: [ids(" 2\n1 + 2 = 3", stop=False)], BYTES)["mean"] == 1
    assert run_task(opened, lambda prompts, most: [ids(" 3\n2")], BYTES)["mean"] == 0


def test_errors_are_raised_before_a_model_is_loaded(tmp_path, monkeypatch):
    checkpoint = str(bytes_model(tmp_path / "model"))
    monkeypatch.delattr("train.evaluate.load_pretrained")
    (tmp_path / "q.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(InputError, match=r"q.jsonl: line 1: answer: is missing"):
        evaluate(checkpoint, "pretrain_tiny", tasks=[str(tmp_path / "q.jsonl")])
    with pytest.raises(InputError, match=r"no shipped task is named 'toy_shp'; did you mean toy_shop\?"):
        evaluate(checkpoint, "pretrain_tiny", tasks=["toy_shp"])
    with pytest.raises(InputError, match=r"--tasks toy_shop: the task 'toy_shop_orders' is given twice"):
        open_tasks(["toy_shop", "toy_shop"], BYTES)

    plain = copy.copy(BYTES)
    plain.controls = {}
    with pytest.raises(InputError, match=r"task toy_shop_orders: example 0: tokenizer bytes has no control token"):
        open_tasks(["toy_shop"], plain)


def test_a_model_answers(shop):
    """With an untrained model, the graded answers equal the greedy answers to each example alone."""
    config = tiny.model_config(vocab_size=BYTES.vocab_size, num_hidden_layers=2, no_rope_layer_interval=2)
    mesh = single_device_mesh()
    with jax.set_mesh(mesh):
        init, _ = tiny.jitted(config, tiny.OPTIMIZER, tiny.PRETRAIN)
        model = init(0).model
    written = lambda prompts, most: answers(model, BYTES, prompts, most, Sampling(temperature=0.0))
    found = run_task(shop, written, BYTES)
    alone = [run_task(shop._replace(examples=[e], prompts=[p]), written, BYTES)["examples"][0]
             for e, p in zip(shop.examples, shop.prompts, strict=True)]  # fmt: skip
    assert found["examples"] == alone and found["n"] == 4


def test_tasks_are_shown_with_their_first_wrong_answers(shop):
    right = [example.references[0] for example in shop.examples]
    found = run_task(shop, lambda prompts, most: [ids(right[0]), *[ids("\x1b[2J")] * 3], BYTES)
    out = io.StringIO()
    show({"eval_loss": 1.0, "tasks": {"orders": found}}, Console(file=out, width=140))
    said = out.getvalue()
    assert "0.250 │          0.250" in said and "Apache-2.0" in said and "\x1b" not in said
    assert said.count("orders, example ") == 3 and f"expected {right[1]!r}" in said
