"""Evaluation on tasks: prompts, answers as written, figures, and errors that are found before a model runs."""

import copy
import io
import json

import pytest
from rich.console import Console

from data.graders.figures import wilson
from data.tasks.toy_shop_orders import ToyShopOrders
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Conversation, Message, Role, ToolCall, render
from tests.helpers.answering_engine import ScriptedEngine
from tests.helpers.folders import bytes_model
from train.evaluate import evaluate
from train.evaluation.tables import show
from train.evaluation.tasks import context_of, open_tasks, run_task

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


def in_order(*answers) -> ScriptedEngine:
    left = list(answers)
    return ScriptedEngine(lambda prompt: left.pop(0))


def tasks_of(folder, text: str, **options):
    (folder / "tasks.yaml").write_text(text)
    return open_tasks([str(folder / "tasks.yaml")], BYTES, **options)


def test_the_prompt_is_the_conversation_with_the_header_of_an_answer(shop):
    assert (shop.name, len(shop.examples), len(shop.prompts)) == ("orders", 4, 4)
    assert list(shop.examples) == ToyShopOrders(count=9).examples()[:4]
    shown = BYTES.decode(shop.prompts[0], controls=True)
    assert shown.endswith("<|header_start|>assistant<|header_end|>\n\n") and '"sent": ' in shown
    run_task(shop, engine := in_order(*[ids("x")] * 4), BYTES)
    assert [list(request.prompt) for request in engine.requests] == list(shop.prompts)
    assert {(r.max_tokens, r.sampling.temperature, STOP in r.stop_ids) for r in engine.requests} == {(40, 0.0, True)}
    assert context_of([shop]) % 128 == 0 and context_of([shop]) >= max(map(len, shop.prompts)) + 40


def test_correct_wrong_cut_and_malformed_answers_are_counted(shop):
    right = [example.references[0] for example in shop.examples]
    call = Conversation((Message(Role.USER, "a"), Message(Role.ASSISTANT, calls=(ToolCall("find_order", {}),))))
    called = render(call, BYTES).ids.tolist()
    called = called[len(render(Conversation(call.messages[:1]), BYTES, add_generation_prompt=True).ids) :]
    found = run_task(shop, in_order(ids(right[0]), ids(right[1], False), called, ids("")), BYTES)
    low, high = wilson(0.25, 4)
    assert found["score"] == {"value": 0.25, "n": 4, "low": low, "high": high} and found["correct"] == 1
    shares = {key: found[key]["value"] for key in ("unanswered", "malformed", "cut", "loop")}
    assert shares == {"unanswered": 0.5, "malformed": 0.25, "cut": 0.25, "loop": 0}
    reasons = [example["reason"] for example in found["examples"]]
    assert reasons == ["", f"did not end within {len(right[1])} tokens", "called find_order instead of answering",
                       "is empty"]  # fmt: skip
    assert json.loads(json.dumps(found)) == found and found["license"] == "Apache-2.0"


def test_every_answer_is_kept_as_it_was_written(shop):
    written = [ids("  <|eot|> \n"), ids("x", False), [*ids("a\u00e9", False), 200, STOP], ids("")]
    found = run_task(shop, in_order(*written), BYTES)
    for example, tokens in zip(found["examples"], written, strict=True):
        assert example["tokens"] == tokens and example["text"] == BYTES.decode(tokens, controls=True)


def test_answers_that_loop_until_they_are_cut_are_counted(shop):
    looping = ids("abc", False) + [7] * 70
    opened = shop._replace(task=shop.task.model_copy(update={"max_tokens": 99}))
    found = run_task(opened, in_order(looping, looping[:40], ids("x"), [7] * 70 + [STOP]), BYTES)
    assert (found["loop"]["value"], found["cut"]["value"], found["tokens_before_loop"]) == (0.25, 0.5, 3)


def test_a_text_prompt_is_unchanged_and_its_answer_needs_no_end(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"prompt": "1 + 1 =", "answer": 2}\n')
    text = f"tasks: {{q: {{kind: questions, path: {tmp_path / 'q.jsonl'}, chat: false, match: numeric}}}}\n"
    (opened,) = tasks_of(tmp_path, text)
    assert opened.prompts == [[BYTES.bos_id, *BYTES.encode("1 + 1 =")]]
    assert run_task(opened, in_order(ids(" 2\n1 + 2 = 3", stop=False)), BYTES)["correct"] == 1
    assert run_task(opened, in_order(ids(" 3\n2")), BYTES)["correct"] == 0


def test_choices_are_scored_by_their_own_tokens(tmp_path):
    (tmp_path / "q.csv").write_text("question,choice0,choice1,answer\nHot?,yes,no,1\nCold?,yes,no,0\n")
    (opened,) = tasks_of(tmp_path, f"tasks: {{q: {{kind: multiple_choice, path: {tmp_path / 'q.csv'}}}}}\n")
    engine = ScriptedEngine(score_of=lambda before, token: -1.0 if token == ord("B") else -2.0)
    found = run_task(opened, engine, BYTES)
    assert [example["score"] for example in found["examples"]] == [1, 0] and found["cut"] is None
    assert found["examples"][0]["text"] == " B" and found["examples"][0]["log_probs"] == [-4.0, -3.0]
    assert all(sequence.count(BYTES.bos_id) == 1 == sequence.index(BYTES.bos_id) + 1 for sequence in engine.scored)


def test_errors_are_raised_before_a_model_is_loaded(tmp_path, monkeypatch):
    checkpoint = str(bytes_model(tmp_path / "model"))
    monkeypatch.delattr("train.evaluate.load_pretrained")
    (tmp_path / "q.jsonl").write_text('{"prompt": "x"}\n')
    for config in ("pretrain_tiny", None):
        with pytest.raises(InputError, match=r"q.jsonl: line 1: answer: is missing"):
            evaluate(checkpoint, config, tasks=[str(tmp_path / "q.jsonl")])
    with pytest.raises(InputError, match=r"no shipped task is named 'toy_shp'; did you mean toy_shop\?"):
        evaluate(checkpoint, "pretrain_tiny", tasks=["toy_shp"])
    with pytest.raises(InputError, match=r"--tasks toy_shop: the task 'toy_shop_orders' is given twice"):
        open_tasks(["toy_shop", "toy_shop"], BYTES)

    plain = copy.copy(BYTES)
    plain.controls = {}
    with pytest.raises(InputError, match=r"task toy_shop_orders: example 0: tokenizer bytes has no control token"):
        open_tasks(["toy_shop"], plain)


def test_programs_are_refused_unless_they_are_allowed(tmp_path, monkeypatch):
    text = f"tasks: {{code: {{kind: human_eval, path: {tmp_path / 'none.jsonl'}}}}}\n"
    with pytest.raises(InputError, match="task code: it runs programs that the model writes; --allow-code permits it"):
        tasks_of(tmp_path, text)
    monkeypatch.setattr("data.sandbox.run._problem", lambda: "no namespaces")
    with pytest.raises(InputError, match="no sandbox for programs: no namespaces; expected bubblewrap"):
        tasks_of(tmp_path, text, allow_code=True)


def test_tasks_are_shown_with_their_first_wrong_answers(shop):
    right = [example.references[0] for example in shop.examples]
    found = run_task(shop, in_order(ids(right[0]), *[ids("\x1b[2J")] * 3), BYTES)
    out = io.StringIO()
    show({"eval_loss": 1.0, "tasks": {"orders": found}}, Console(file=out, width=140))
    said = out.getvalue()
    assert "0.250" in said and "0.046-0.699" in said and "\x1b" not in said
    assert said.count("orders, example ") == 3 and f"expected {right[1]!r}" in said
