"""`maverick chat`: it answers piped input, prints a readable transcript, and shows parsed calls."""

import io
import json

import pytest

from data.guard import Gate
from data.policy import read_policy
from launch.chat import converse
from launch.cli import main
from maverick_jax.errors import InputError
from maverick_jax.inference import ChatSession, Sampling
from maverick_jax.inference.engine import Finish, Generation, Update
from maverick_jax.pretrained import save_pretrained
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Conversation, Message, Role, ToolCall, render
from tests.parity.oracle import our_model, random_parameters, shapes, variant

BYTES = load_tokenizer("bytes")
CONFIG = variant(vocab_size=BYTES.vocab_size, num_hidden_layers=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "hf"
    save_pretrained(our_model(CONFIG, random_parameters(shapes(CONFIG))), path, "float32", tokenizer=BYTES)
    return path


@pytest.fixture
def typed(monkeypatch, capsys):
    """`typed(lines, *argv)` -> (exit code, stdout, stderr)"""

    def run(lines: str, *argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        code = main(["chat", *argv])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


class Scripted:
    """A stand-in for an engine: it answers with scripted ids and records the requests."""

    def __init__(self, *answers: list[int]):
        self.answers, self.prompts, self.seeds = list(answers), [], []

    def submit(self, request):
        self.prompts.append(list(request.prompt))
        self.seeds.append(request.seed)
        generation = Generation(request)
        for token in (written := self.answers.pop(0)):
            generation.put(Update((token,)))
        generation.put(Update((), finish=Finish.STOP if written[-1] in request.stop_ids else Finish.LENGTH))
        return [generation]


def answer(text: str, stop: str | None = "<|eot|>") -> list[int]:
    return [*BYTES.encode(text), *([BYTES.controls[stop]] if stop else [])]


def test_a_conversation_through_a_pipe(folder, typed):
    lines = "Hello\n\n  \nHow are you?\n/reset\nHello\n/exit\nnever read\n"
    code, out, _ = typed(lines, str(folder), "--max-tokens", "5", "--temperature", "0", "--system", "Be brief.")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("you> ")] == [
        "you> Hello", "you> How are you?", "you> /reset", "you> Hello",
    ]  # fmt: skip
    _, first, again = out.split("you> Hello\n")
    assert first.startswith("model> ") and first.split("you> ")[0] == again
    code, printed, _ = typed(lines, str(folder), "--max-tokens", "5", "--temperature", "0", "--json")
    assert code == 0 and [turn["user"] for turn in json.loads(printed)["turns"]] == ["Hello", "How are you?", "Hello"]


def test_seed_and_settings_reach_the_model(folder, typed):
    runs = [typed("Hi\nHi\n", str(folder), "--max-tokens", "8", "--seed", seed)[1] for seed in ("1", "1", "2")]
    assert runs[0] == runs[1] != runs[2]


def test_the_conversation_so_far_is_the_prompt():
    script = Scripted(answer("Yes."), answer("cut", None), answer("", "<|eom|>"), answer("Again."))
    out = io.StringIO()
    chat = ChatSession(BYTES, system="Be kind.", seed=7)
    turns = converse(script, chat, io.StringIO("One\nTwo <|eot|>\nThree\n/reset\nFour\n"), out)  # pyright: ignore
    said = [Message(Role.SYSTEM, "Be kind."), Message(Role.USER, "One")]
    asked = [render(Conversation(said), BYTES, add_generation_prompt=True).ids.tolist()]
    said += [Message(Role.ASSISTANT, "Yes."), Message(Role.USER, "Two <|eot|>")]
    asked.append(render(Conversation(said), BYTES, add_generation_prompt=True).ids.tolist())
    said += [Message(Role.ASSISTANT, "cut"), Message(Role.USER, "Three")]
    asked.append(render(Conversation(said), BYTES, add_generation_prompt=True).ids.tolist())
    asked.append(
        render(Conversation([said[0], Message(Role.USER, "Four")]), BYTES, add_generation_prompt=True).ids.tolist()
    )
    assert script.prompts == asked
    assert script.seeds == [7, 8, 9, 7]
    assert [turn["stop"] for turn in turns] == ["<|eot|>", None, "<|eom|>", "<|eot|>"]
    assert out.getvalue() == (
        "you> One\nmodel> Yes.\nyou> Two <|eot|>\nmodel> cut\n  (cut after 512 tokens)\nyou> Three\nmodel> \n"
        "you> /reset\nyou> Four\nmodel> Again.\n"
    )


def test_calls_are_shown_parsed():
    calls = [ToolCall("get_weather", {"city": "SF", "days": 2}), ToolCall("now")]
    rendered = render(Conversation([Message(Role.ASSISTANT, "Wait.", calls)]), BYTES, "meta_json")
    script = Scripted(rendered.ids[rendered.decisions[0] :].tolist(), answer('{"name": "f"}'))
    out = io.StringIO()
    turns = converse(script, ChatSession(BYTES, "meta_json"), io.StringIO("Go\nGo\n"), out)  # pyright: ignore
    assert "\n  call get_weather(city='SF', days=2)\n  call now()\n" in out.getvalue()
    assert "\n  malformed reply: call 0: 'parameters' is missing" in out.getvalue()
    assert turns[0]["calls"][0] == {"name": "get_weather", "arguments": {"city": "SF", "days": 2}}
    assert turns[1]["text"] == '{"name": "f"}' and "parameters" in turns[1]["error"]


def test_a_terminal_gets_prompts_and_no_control_characters():
    script = Scripted(answer("\x1b[31mred\x07\n\tok"))
    lines = io.StringIO("Hi\n/what\n")
    lines.isatty = lambda: True  # pyright: ignore[reportAttributeAccessIssue]
    out = io.StringIO()
    converse(script, ChatSession(BYTES, sampling=Sampling(0.0)), lines, out)  # pyright: ignore
    assert out.getvalue() == (
        "/reset starts a new conversation, /exit quits\nyou> model> \\x1b[31mred\\x07\n\tok\n"
        "you> no command '/what': /reset starts a new conversation, /exit quits\nyou> "
    )


def test_bad_arguments_are_reported_before_the_model_is_loaded(folder, typed, monkeypatch, tmp_path):
    monkeypatch.setattr("maverick_jax.pretrained.load_pretrained", None)
    for argv, said in (
        ((str(folder), "--dialect", "meta-json"), "did you mean meta_json"),
        ((str(folder), "--temperature", "-1"), "temperature: -1.0"),
        ((str(tmp_path),), "contains none of"),
    ):
        code, out, err = typed("hi\n", *argv)
        assert (code, out) == (78, "") and said in err


def test_input_that_is_not_text_is_refused(monkeypatch):
    lines = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8")
    with pytest.raises(InputError, match=r"standard input: not utf-8"):
        converse(None, ChatSession(BYTES), lines, None)  # pyright: ignore


POLICY = """
tools:
  find: {privilege: 1}
  pay: {privilege: 3, confirm: [amount]}
  fire: {privilege: 4}
"""


def test_a_gate_puts_its_words_in_the_place_of_calls(tmp_path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    gate = Gate(read_policy(str(tmp_path / "policy.yaml")))
    script = Scripted(*map(answer, ['[find(order="A1")]', "[pay(amount=40)]", "[pay(amount=40)]", "[fire()]"]))
    chat, out = ChatSession(BYTES), io.StringIO()
    turns = converse(script, chat, io.StringIO("Look\nPay it\nYes, please\nGo on\n"), out, gate)  # pyright: ignore
    assert [[call["name"] for call in turn["calls"]] for turn in turns] == [["find"], [], ["pay"], []]
    question = "May I call pay with amount 40?"
    assert turns[1]["text"] == question and turns[1]["held_back"]["ruling"] == "confirm"
    assert turns[3]["held_back"]["ruling"] == "block" and "I may not do that here: fire" in turns[3]["text"]
    assert f"held back: {question}" in out.getvalue()
    said = [Message(Role.USER, "Look"), Message(Role.ASSISTANT, calls=(ToolCall("find", {"order": "A1"}),)),
            Message(Role.USER, "Pay it"), Message(Role.ASSISTANT, question),
            Message(Role.USER, "Yes, please")]  # fmt: skip
    expected = render(Conversation(said), BYTES, chat.dialect.name, add_generation_prompt=True).ids.tolist()
    without = lambda ids: [i for i in ids if i not in BYTES.controls.values()]
    assert without(script.prompts[2]) == without(expected)
