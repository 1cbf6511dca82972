"""Our exports in other programs: transformers renders our templates to our ids, and encodes texts to our ids."""

import json
import keyword
import logging
import pathlib
import re

import pytest
import tokenizers
from transformers import AutoTokenizer

from maverick_jax.errors import InputError
from maverick_jax.huggingface.tokenizer_files import write_hugging_face
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import (
    DIALECTS,
    Conversation,
    Image,
    Message,
    Role,
    Tool,
    ToolCall,
    chat_template,
    from_openai,
    render,
)
from maverick_jax.text.chat.pythonic import NOT_NAMES
from tests.helpers.chats import everything, openai_form

dialects = pytest.mark.parametrize("dialect", DIALECTS)
SYSTEM, USER, ASSISTANT, TOOL = Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ '<|header_start|>' + m.role + '<|header_end|>\n\n' }}"
    "{{ m.content | trim if m.role == 'system' else m.content }}{{ '<|eot|>' }}{% endfor %}"
)
"""The public format of plain messages, in the form of Hugging Face's programs."""


@pytest.fixture(scope="module")
def exported(small_llama4, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("exported")
    write_hugging_face(small_llama4, folder, "meta_pythonic")
    return folder


@pytest.fixture(scope="module")
def theirs(exported):
    return AutoTokenizer.from_pretrained(exported)


def their_ids(theirs, conversation, template, prompt=False) -> list[int]:
    messages, tools = openai_form(conversation)
    return theirs.apply_chat_template(
        messages, tools=tools or None, chat_template=template, add_generation_prompt=prompt, return_dict=False
    )


def assert_same(theirs, tokenizer, conversation, dialect):
    for prompt in (False, True):
        ours = render(conversation, tokenizer, dialect, add_generation_prompt=prompt).ids.tolist()
        assert their_ids(theirs, conversation, chat_template(dialect), prompt) == ours


@dialects
@pytest.mark.parametrize("field", ["x", "", 'quo"te\\', "line\nbreak ", "東京 🙂", "{{ 7 * 7 }}", "class"])
def test_templates_give_our_ids(dialect, field, theirs, small_llama4):
    image = Image([small_llama4.controls["<|image|>"]])
    conversation = everything(field or " ", image)
    assert_same(theirs, small_llama4, conversation, dialect)
    no_system = Conversation(conversation.messages[1:], conversation.tools)
    assert_same(theirs, small_llama4, no_system, dialect)
    without_tools = Conversation([*conversation.messages[:2], conversation.messages[-2]])
    assert_same(theirs, small_llama4, without_tools, dialect)


@dialects
def test_templates_give_our_ids_for_odd_calls(dialect, theirs, small_llama4):
    odd = [
        None,
        True,
        False,
        0,
        -0.0,
        1e22,
        1e-7,
        2**70,
        "",
        "'\"\\\n\t\x01\x7f",
        [],
        {},
        [[{"": None}]],
        {"a b": {"c": 1}},
    ]
    odd += [{"a b": {"c": 1}}]
    keys = ["a", "_b9", "9c", "é", "", "a b", "class", "None", "__debug__", "self"]
    names = ["f", "a.b.c", "a..b", ".f", "f-g", "lambda", "x.if", "é", 'q"', "_", "A1"]
    calls = [
        ToolCall(name, {key: odd[i % len(odd)]}) for i, (name, key) in enumerate(zip(names * 2, keys * 3, strict=False))
    ]
    calls += [ToolCall("f", {"a": value, "b": value}) for value in odd]
    for said in ("", "Well: "):
        messages = [Message(USER, "Go"), Message(ASSISTANT, said, calls), Message(TOOL, 'a "b"\n'), Message(TOOL, "")]
        assert_same(theirs, small_llama4, Conversation(messages, [Tool("f")]), dialect)


@dialects
def test_thoughts_in_templates(dialect, theirs, small_llama4):
    messages = [Message(USER, "Go"), Message(ASSISTANT, "Yes", [ToolCall("f")], "why"), Message(TOOL, "1")]
    assert_same(theirs, small_llama4, Conversation([*messages, Message(ASSISTANT, "Yes", thought="so")]), dialect)


def test_templates_keep_names_that_are_no_python_identifiers():
    listed = re.search(r"not_names = (\[.*\])", chat_template("meta_pythonic"))
    assert listed and json.loads(listed[1].replace("'", '"')) == [*keyword.kwlist, "__debug__"]
    assert set(keyword.kwlist) | {"__debug__"} == NOT_NAMES


@pytest.mark.parametrize("dialect", DIALECTS)
def test_templates_refuse_conversations_that_they_cannot_express(dialect, theirs):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    with pytest.raises(Exception, match=r"arguments of a call must be an object"):
        theirs.apply_chat_template(
            [{"role": "assistant", "content": "", "tool_calls": [call]}], chat_template=chat_template(dialect)
        )
    with pytest.raises(Exception, match=r"unknown role robot"):
        theirs.apply_chat_template([{"role": "robot", "content": ""}], chat_template=chat_template(dialect))


def test_plain_messages_equal_hugging_faces(theirs, small_llama4):
    for text in ("Hello", "", " a\n", "\td", "é 🙂", "x  \n\n y"):
        said = [(SYSTEM, f" You help.{text}"), (USER, text), (ASSISTANT, f"{text}. Yes."), (USER, f"{text} Why? ")]
        conversation = Conversation([Message(role, content) for role, content in said])
        assert render(conversation, small_llama4, "hugging_face").ids.tolist() == their_ids(theirs, conversation, PLAIN)
        rest = Conversation(conversation.messages[1:])
        for dialect in DIALECTS:
            assert render(rest, small_llama4, dialect).ids.tolist() == their_ids(theirs, rest, PLAIN)


def test_real_runs_in_transformers(real_data, any_llama4, any_llama4_folder):
    theirs = AutoTokenizer.from_pretrained(any_llama4_folder)
    tools = json.loads((real_data / "tau_airline_tools.json").read_text())
    for line in (real_data / "tau_airline_gpt4o.jsonl").read_text().splitlines()[:150:30]:
        conversation = from_openai(json.loads(line)["traj"], tools)
        for dialect in DIALECTS:
            assert_same(theirs, any_llama4, conversation, dialect)


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_transformers_knows_every_special_token(theirs, exported, small_llama4):
    assert len(theirs) == 202_048
    assert theirs.convert_tokens_to_ids(list(small_llama4.controls)) == list(small_llama4.controls.values())
    assert theirs.decode([201134, 201142, 201143, 202047]) == (
        "<|reasoning_reserved_special_token_0|><|reasoning_thinking_start|><|reasoning_thinking_end|>"
        "<|reserved_special_token_903|>"
    )
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (200000, 200008, 200018)
    config = json.loads((exported / "tokenizer_config.json").read_text())
    assert {int(i): token["content"] for i, token in config["added_tokens_decoder"].items()} == {
        i: text for text, i in small_llama4.controls.items()
    }
    assert json.loads((exported / "special_tokens_map.json").read_text()) == {
        "bos_token": "<|begin_of_text|>", "eos_token": "<|eot|>", "pad_token": "<|finetune_right_pad|>",
    }  # fmt: skip


def test_other_programs_begin_a_text_with_bos(theirs, exported, small_llama4):
    text = "Hello, world"
    wanted = [200000, *small_llama4.encode(text)]
    assert theirs(text).input_ids == wanted
    assert theirs(text, add_special_tokens=False).input_ids == wanted[1:]
    assert theirs(text, text).input_ids == wanted * 2
    assert tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json")).encode(text).ids == wanted
    assert theirs.decode(theirs(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(("kind", "dialect"), [*(("bytes", d) for d in DIALECTS), ("llama4", "meta_pythonic")])
def test_our_folder_is_read_back(kind, dialect, request, tmp_path):
    if kind == "bytes":
        tokenizer, folder = load_tokenizer("bytes"), tmp_path
        write_hugging_face(tokenizer, folder, dialect)
    else:
        tokenizer, folder = request.getfixturevalue("small_llama4"), request.getfixturevalue("exported")
    again = load_tokenizer(folder)
    assert (again.dialect, again.bos_id, again.pad_id) == (dialect, tokenizer.bos_id, tokenizer.pad_id)
    assert again.eos_id == tokenizer.controls["<|eot|>"]
    assert (again.controls, again.vocab_size) == (tokenizer.controls, tokenizer.vocab_size)
    for out in ("saved", "exported"):
        (tmp_path / out).mkdir()
    again.save(tmp_path / "saved")
    write_hugging_face(load_tokenizer(tmp_path / "saved"), tmp_path / "exported")
    for name in ("tokenizer.json", "special_tokens_map.json", "chat_template.jinja"):
        assert (tmp_path / "exported" / name).read_bytes() == (folder / name).read_bytes()
    conversation = everything()
    for prompt in (False, True):
        ids = [render(conversation, t, dialect, add_generation_prompt=prompt).ids.tolist() for t in (tokenizer, again)]
        assert ids[0] == ids[1]


def test_a_base_model_has_no_template_and_ends_with_end_of_text(tmp_path):
    tokenizer = load_tokenizer("bytes")
    write_hugging_face(tokenizer, tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.dialect, again.eos_id) == (None, tokenizer.eos_id)
    assert not (tmp_path / "chat_template.jinja").exists()


def test_no_template_of_that_name(tmp_path):
    with pytest.raises(InputError, match=r"did you mean hugging_face"):
        chat_template("huggingface")
    with pytest.raises(InputError, match=r"dialect 'xml'"):
        write_hugging_face(load_tokenizer("bytes"), tmp_path, "xml")
    assert list(tmp_path.iterdir()) == []


# ---- foreign templates -----------------------------------------------------------------------------------------------

HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10 ** 10 }}",
    "{% include '/etc/passwd' %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% if %}",
    "\x00\xff",
    "",
    chat_template("meta_json") + "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_foreign_templates_are_never_rendered(content, tmp_path, caplog, monkeypatch):
    """They are only compared with ours, and copied; our code does not even import jinja2. Code that a file names is not
    copied."""
    monkeypatch.setattr("jinja2.Environment.from_string", None)
    mark = tmp_path / "mark"
    write_hugging_face(load_tokenizer("bytes"), tmp_path)
    (tmp_path / "chat_template.jinja").write_text(content.replace("MARK", str(mark)))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"chat_template": content.replace("MARK", str(mark)), "auto_map": {"AutoTokenizer": ["evil.py", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(tmp_path)
    assert "not the template of a known dialect" in caplog.text and "chat_template.jinja" in caplog.text
    assert tokenizer.dialect is None
    assert render(Conversation([Message(USER, "hi")]), tokenizer).text.endswith("hi<|eot|>")
    (tmp_path / "out").mkdir()
    write_hugging_face(tokenizer, tmp_path / "out")
    name = "chat_template.jinja"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["chat_template"] == config["chat_template"] and "auto_map" not in written
    write_hugging_face(tokenizer, tmp_path / "out", "meta_json")
    assert (tmp_path / "out" / name).read_text() == chat_template("meta_json")
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert not mark.exists()


def test_a_huge_template_is_not_read_whole(tmp_path, caplog):
    write_hugging_face(load_tokenizer("bytes"), tmp_path)
    with (tmp_path / "chat_template.jinja").open("wb") as file:
        file.truncate(10**12)
    assert load_tokenizer(tmp_path).dialect is None
    assert "not the template of a known dialect" in caplog.text


def test_our_code_does_not_import_jinja():
    root = pathlib.Path(__file__).parents[2]
    sources = [p for package in ("maverick_jax", "train", "data", "launch") for p in (root / package).rglob("*.py")]
    assert [str(p) for p in sources if re.search(r"^\s*(import|from) jinja2", p.read_text(), re.MULTILINE)] == []
