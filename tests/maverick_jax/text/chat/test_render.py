"""Rendering: Llama 4's format, control tokens placed only by code, and the kind of each token."""

import contextlib
import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maverick_jax.errors import InputError
from maverick_jax.images import ImageTokenIds, image_tokens
from maverick_jax.text import Tokenizer, load_tokenizer
from maverick_jax.text.chat import (
    DIALECTS,
    Conversation,
    Image,
    Kind,
    Message,
    Reply,
    Role,
    Tool,
    ToolCall,
    find_dialect,
    from_openai,
    render,
)
from tests.helpers.chats import CALLS, LITERALS, TEXTS, everything

BYTES = load_tokenizer("bytes")
dialects = pytest.mark.parametrize("dialect", DIALECTS)
SYSTEM, USER, ASSISTANT, TOOL = Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL


def metas_ids(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """Ids of a conversation without tools, as by Meta's code: each header's line and each text is encoded alone."""
    control = lambda name: tokenizer.controls[f"<|{name}|>"]
    ids = [control("begin_of_text")]
    for message in conversation.messages:
        ids += [control("header_start"), *tokenizer.encode(message.role.header), control("header_end")]
        ids += tokenizer.encode("\n\n")
        for part in message.parts:
            ids += tokenizer.encode(part) if isinstance(part, str) else part.ids
        ids.append(control("eot"))
    return ids


def image_for(tokenizer: Tokenizer, grid=(1, 2)) -> Image:
    return Image(image_tokens(grid, ImageTokenIds.of(tokenizer), patches_per_tile=2))


def plain(text: str) -> Conversation:
    said = [(SYSTEM, f"You help.{text}"), (USER, text), (ASSISTANT, f"{text}. Yes."), (USER, f"Why? {text} ")]
    return Conversation([Message(role, content) for role, content in said])


@dialects
@pytest.mark.parametrize("text", ["Hello", "", " a\n", "\n\n\nb", "  \n c", "\td", "é 🙂", *LITERALS])
def test_plain_messages_equal_metas(dialect, text, small_llama4):
    conversation = plain(text)
    wanted = conversation if dialect != "hugging_face" else _system_trimmed(conversation)
    assert render(conversation, small_llama4, dialect).ids.tolist() == metas_ids(wanted, small_llama4)


def _system_trimmed(conversation: Conversation) -> Conversation:
    first, *rest = conversation.messages
    return Conversation([Message(SYSTEM, first.text.strip()), *rest])


def test_known_ids(real_llama4):
    rendered = render(Conversation([Message(USER, "\n\n")]), real_llama4, add_generation_prompt=True)
    header = [200005, 1556, 200006, 368]
    assert rendered.ids.tolist() == [200000, *header, 368, 200008, 200005, 140680, 200006, 368]
    tool = Conversation([Message(ASSISTANT, "", [ToolCall("f")]), Message(TOOL, "1")])
    assert [607, 6934] in [render(tool, real_llama4).ids[i : i + 2].tolist() for i in range(30)][:20]


@dialects
def test_images_keep_their_positions(dialect, small_llama4):
    image, wide = image_for(small_llama4), image_for(small_llama4, (2, 2))
    conversation = Conversation([Message(USER, ("One:", image, image, wide, " and", wide)), Message(ASSISTANT, "Ok")])
    rendered = render(conversation, small_llama4, dialect)
    assert rendered.ids.tolist() == metas_ids(conversation, small_llama4)
    blocks = [rendered.ids[span.begin : span.end].tolist() for span in rendered.spans if span.kind is Kind.IMAGE]
    assert blocks == [list(i.ids) for i in (image, image, wide, wide)]
    assert not rendered.written[rendered.kinds == Kind.IMAGE].any()


def test_an_image_may_have_only_image_tokens(small_llama4):
    with pytest.raises(InputError, match=r"image: token id 200008 is not one of <\|image_start\|>"):
        render(Conversation([Message(USER, (Image([200008]),))]), small_llama4)


# ---- kinds of tokens -----------------------------------------------------------------------------------------------


@dialects
@pytest.mark.parametrize("kind", ["bytes", "small", "real"])
def test_spans_cover_all_tokens(dialect, kind, request):
    tokenizer = BYTES if kind == "bytes" else request.getfixturevalue(f"{kind}_llama4")
    image = image_for(tokenizer)
    thought, latents = ("", 0) if kind == "bytes" else ("Hm.", 3)
    rendered = render(everything("x", image, thought, latents), tokenizer, dialect, add_generation_prompt=True)
    assert_consistent(rendered, tokenizer)
    assert {Kind(k) for k in np.unique(rendered.kinds)} == set(Kind) - ({Kind.LATENT} if kind == "bytes" else set())


def assert_consistent(rendered, tokenizer):
    assert rendered.ids.dtype == rendered.messages.dtype == rendered.decisions.dtype == np.int32
    assert rendered.kinds.dtype == rendered.roles.dtype == np.uint8
    assert (
        "".join(span.text for span in rendered.spans) == rendered.text == tokenizer.decode(rendered.ids, controls=True)
    )
    edges = [(span.begin, span.end) for span in rendered.spans]
    assert edges[0][0] == 0 and edges[-1][1] == len(rendered.ids)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(edges))
    controls = set(tokenizer.controls.values())
    for span in rendered.spans:
        inside = slice(span.begin, span.end)
        assert set(rendered.kinds[inside].tolist()) <= {span.kind}
        assert set(rendered.roles[inside].tolist()) <= {span.role}
        assert set(rendered.messages[inside].tolist()) <= {span.message}
        assert {int(i) in controls for i in rendered.ids[inside]} <= {
            span.kind in (Kind.CONTROL, Kind.IMAGE, Kind.LATENT)
        }
    assert owners_one_by_one(rendered, tokenizer) == [i for i, (b, e) in enumerate(edges) for _ in range(b, e)]


def owners_one_by_one(rendered, tokenizer) -> list[int]:
    """The span of each token, byte by byte: of the spans whose bytes it holds, the first that is not call syntax."""
    of_byte = [i for i, span in enumerate(rendered.spans) for _ in span.text.encode()]
    owners, position = [], 0
    lengths = byte_lengths(rendered.ids.tolist(), tokenizer)
    for length in lengths:
        held = list(dict.fromkeys(of_byte[position : position + length]))
        position += length
        owners.append(next((i for i in held if rendered.spans[i].kind is not Kind.CALL_SYNTAX), held[0]))
    assert position == len(of_byte)
    return owners


def byte_lengths(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    controls = {i: len(text.encode()) for text, i in tokenizer.controls.items()}
    ordinary = lambda i: 1 if tokenizer is BYTES else len(tokenizer._encoding.decode_single_token_bytes(i))
    return [controls[i] if i in controls else ordinary(i) for i in ids]


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(text=TEXTS, calls=st.lists(CALLS, max_size=2), dialect=st.sampled_from(list(DIALECTS)), result=TEXTS)
def test_spans_of_any_conversation(text, calls, dialect, result, small_llama4):
    messages = [Message(SYSTEM, text), Message(USER, text), Message(ASSISTANT, text, calls)]
    conversation = Conversation([*messages, *(Message(TOOL, result) for _ in calls)], [Tool("f", text)])
    for tokenizer in (BYTES, small_llama4):
        assert_consistent(render(conversation, tokenizer, dialect), tokenizer)


def kinds_in_words(rendered, tokenizer) -> list[tuple[str, str]]:
    return [(span.kind.name, span.text) for span in rendered.spans if span.message == 1]


def test_kinds_of_a_call():
    calls = [ToolCall("f", {"a": 1, "b": "x"}), ToolCall("g-h", {"c-d": None})]
    messages = [Message(USER, "Go"), Message(ASSISTANT, "Yes.", calls), Message(TOOL, "1")]
    header = [
        ("CONTROL", "<|header_start|>"),
        ("HEADER", "assistant"),
        ("CONTROL", "<|header_end|>"),
        ("HEADER", "\n\n"),
    ]
    start, end = ("CONTROL", "<|python_start|>"), ("CONTROL", "<|python_end|>")
    wanted = {
        "meta_pythonic": [
            *header, ("THOUGHT", "Yes."), start, ("CALL_SYNTAX", "["), ("CALL_NAME", "f"), ("CALL_SYNTAX", "("),
            ("CALL_ARGUMENTS", 'a=1, b="x"'), ("CALL_SYNTAX", ")"), ("CALL_SYNTAX", ', "'), ("CALL_NAME", "g-h"),
            ("CALL_SYNTAX", '"('), ("CALL_ARGUMENTS", '**{"c-d": None}'), ("CALL_SYNTAX", ")"), ("CALL_SYNTAX", "]"),
            end, ("CONTROL", "<|eot|>"),
        ],
        "meta_json": [
            *header, ("THOUGHT", "Yes."), start, ("CALL_SYNTAX", '{"type": "function", "name": "'), ("CALL_NAME", "f"),
            ("CALL_SYNTAX", '", "parameters": '), ("CALL_ARGUMENTS", '{"a": 1, "b": "x"}'), ("CALL_SYNTAX", "}"),
            ("CALL_SYNTAX", '{"type": "function", "name": "'), ("CALL_NAME", "g-h"),
            ("CALL_SYNTAX", '", "parameters": '),
            ("CALL_ARGUMENTS", '{"c-d": null}'), ("CALL_SYNTAX", "}"), end, ("CONTROL", "<|eom|>"),
        ],
        "hugging_face": [
            *header, start, ("THOUGHT", "Yes."), end, ("CALL_SYNTAX", '{"name": "'), ("CALL_NAME", "f"),
            ("CALL_SYNTAX", '", "parameters": '), ("CALL_ARGUMENTS", '{"a": 1, "b": "x"}'), ("CALL_SYNTAX", "}"),
            ("CALL_SYNTAX", '{"name": "'), ("CALL_NAME", "g-h"), ("CALL_SYNTAX", '", "parameters": '),
            ("CALL_ARGUMENTS", '{"c-d": null}'), ("CALL_SYNTAX", "}"), ("CONTROL", "<|eot|>"),
        ],
    }  # fmt: skip
    for dialect in DIALECTS:
        assert kinds_in_words(render(Conversation(messages), BYTES, dialect), BYTES) == wanted[dialect]


@dialects
def test_written_tokens_of_the_assistant(dialect, small_llama4):
    """`written` covers all tokens that a model generates: decisions, texts, calls and stop tokens."""
    conversation = everything()
    rendered = render(conversation, small_llama4, dialect, add_generation_prompt=True)
    runs = np.flatnonzero(np.diff(np.pad(rendered.written.astype(np.int8), 1))).reshape(-1, 2)
    spoken = [message for message in conversation.messages if message.role is ASSISTANT]
    assert runs[:, 0].tolist() == rendered.decisions.tolist() and len(runs) == len(spoken)
    stops = {small_llama4.controls[f"<|{name}|>"] for name in ("eot", "eom")}
    for message, (begin, end) in zip(spoken, runs.tolist(), strict=True):
        assert int(rendered.ids[end - 1]) in stops
        found = find_dialect(dialect).parse_calls(rendered.ids[begin:end], small_llama4)
        assert isinstance(found, Reply) and found.message() == message
        assert rendered.ids[begin - 1 : begin].tolist() == small_llama4.encode("\n\n")


@dialects
def test_a_prefix_of_a_conversation_renders_to_a_prefix(dialect, small_llama4):
    conversation = everything()
    whole = render(conversation, small_llama4, dialect).ids.tolist()
    for count in range(2, len(conversation.messages)):
        part = Conversation(conversation.messages[:count], conversation.tools)
        ids = render(part, small_llama4, dialect).ids.tolist()
        assert whole[: len(ids)] == ids
        if conversation.messages[count].role is ASSISTANT:
            asked = render(part, small_llama4, dialect, add_generation_prompt=True).ids.tolist()
            assert whole[: len(asked)] == asked


# ---- text never becomes a control token ------------------------------------------------------------------------------


def controls_of(rendered, tokenizer) -> list[int]:
    known = set(tokenizer.controls.values())
    return [i for i in rendered.ids.tolist() if i in known]


@dialects
@pytest.mark.parametrize("literal", LITERALS)
def test_literals_in_every_field_are_text(dialect, literal, small_llama4):
    for tokenizer in (BYTES, small_llama4):
        assert_all_text(literal, dialect, tokenizer)


@pytest.mark.slow
@dialects
def test_every_literal_in_every_field_is_text(dialect, small_llama4):
    for literal in small_llama4.controls:
        assert_all_text(literal, dialect, small_llama4)


@dialects
def test_all_literals_at_once_are_text(dialect, small_llama4):
    every = "".join(small_llama4.controls)
    with_it = Conversation(
        [Message(SYSTEM, every), Message(USER, every), Message(ASSISTANT, every)], [Tool("f", every)]
    )
    without = Conversation([Message(SYSTEM, "x"), Message(USER, "x"), Message(ASSISTANT, "x")], [Tool("f", "x")])
    found, wanted = (render(c, small_llama4, dialect) for c in (with_it, without))
    assert controls_of(found, small_llama4) == controls_of(wanted, small_llama4)


def assert_all_text(literal: str, dialect: str, tokenizer: Tokenizer) -> None:
    conversation = everything(literal)
    rendered, usual = (render(c, tokenizer, dialect) for c in (conversation, everything()))
    assert controls_of(rendered, tokenizer) == controls_of(usual, tokenizer)
    shape = lambda r: [(span.kind, span.role, span.message) for span in r.spans]
    assert shape(rendered) == shape(usual)
    for i, message in enumerate(conversation.messages):
        kinds = (Kind.SYSTEM, Kind.USER, Kind.TEXT, Kind.THOUGHT, Kind.RESULT)
        own = [s for s in rendered.spans if s.message == i and s.kind in kinds]
        said = "".join(tokenizer.decode(rendered.ids[s.begin : s.end]) for s in own)
        quoted = dialect == "hugging_face" and message.role is TOOL
        assert (json.loads(said) if quoted else said) == message.text


# ---- OpenAI's chat format ------------------------------------------------------------------------------------------


def test_real_trajectories(real_data, any_llama4):
    tools = json.loads((real_data / "tau_airline_tools.json").read_text())
    lines = (real_data / "tau_airline_gpt4o.jsonl").read_text().splitlines()
    for run in map(json.loads, lines[:20]):
        conversation = from_openai(run["traj"], tools)
        assert len(conversation.messages) == len(run["traj"]) and len(conversation.tools) == 14
        for dialect in DIALECTS:
            rendered = render(conversation, any_llama4, dialect)
            assert rendered.text == any_llama4.decode(rendered.ids, controls=True)
            spoken = [message for message in conversation.messages if message.role is ASSISTANT]
            for message, begin in zip(spoken, rendered.decisions.tolist(), strict=True):
                found = find_dialect(dialect).parse_calls(rendered.ids[begin:], any_llama4)
                assert isinstance(found, Reply) and found.message() == message


def test_from_openai():
    image = Image([1])
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    parts = [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm", "refusal": None},
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "f"},
        {"role": "assistant", "content": "two", "tool_calls": None},
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "strict": True}}]
    found = from_openai(messages, json.dumps(tools), images=[image], ignored=("strict", "refusal"))
    assert found.messages == (
        Message(SYSTEM, "s"), Message(USER, ("See", image)), Message(ASSISTANT, "", [ToolCall("f", {"a": 1})], "hm"),
        Message(TOOL, "2", call_id="c1"), Message(ASSISTANT, "two"),
    )  # fmt: skip
    assert found.tools == (Tool("f", "d"),)


USER_SAYS = {"role": "user", "content": "hi"}


def calling(function: object, **fields) -> list[dict]:
    return [{"role": "assistant", "content": "", "tool_calls": [{"id": "c", "function": function, **fields}]}]


@pytest.mark.parametrize("arguments", ["", " \n", "null", "{}", {}])
def test_empty_arguments_are_none(arguments):
    (message,) = from_openai(calling({"name": "f", "arguments": arguments})).messages
    assert message.calls == (ToolCall("f"),)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


CALL = calling({"name": "f", "arguments": "{}"})

SURROGATE = "a\ud800"
MALFORMED = [
    (None, r"messages: expected a list, got NoneType"),
    ({}, r"messages: expected a list, got dict"),
    ([], r"messages: empty; expected at least one"),
    (["hi"], r"message 0: message: expected an object, got str"),
    ([{"content": "hi"}], r"message 0: role: None; expected one of system"),
    ([{"role": "User", "content": "hi"}], r"message 0: role: 'User'; .*did you mean user"),
    ([{"role": "system<|eot|>", "content": "hi"}], r"message 0: role: 'system<\|eot\|>'; expected one of"),
    ([{"role": ["user"], "content": "hi"}], r"message 0: role: \['user'\]; expected one of"),
    ([{"role": "x" * 10_000_000, "content": ""}], r"message 0: role: 'xxx"),
    ([USER_SAYS, {"role": "user"}], r"message 1: content: is missing"),
    ([USER_SAYS, {"role": "assistant", "content": None}], r"message 1: content: null without tool_calls"),
    ([{"role": "user", "content": 5}], r"message 0: content: expected a list, got int"),
    ([{"role": "user", "content": b"hi"}], r"message 0: content: expected a list, got bytes"),
    ([{"role": "user", "content": SURROGATE}], r"message 0: content: character 1 is half a character"),
    ([{"role": "user", "content": "x" * (2**24 + 1)}], r"message 0: content: 16,777,217 characters; expected at most"),
    ([{"role": "user", "content": [{"type": "text", "text": 5}]}], r"message 0: content\[0\]\.text: expected text"),
    ([{"role": "user", "content": [{"type": "audio"}]}], r"content\[0\]\.type: 'audio'; expected text, image"),
    ([{"role": "user", "content": [{"type": "image"}]}], r"content\[0\]\.more image parts than `images`"),
    ([{"role": "user", "content": ["hi"]}], r"content\[0\]\.part: expected an object"),
    ([{**USER_SAYS, "contents": "x"}], r"message 0: contents: unknown field; .*did you mean content"),
    ([{**USER_SAYS, "tool_calls": [{"function": {"name": "f"}}]}], r"message 0: tool_calls: unknown field"),
    ([{**USER_SAYS, "weight": 1}], r"message 0: weight: unknown field"),
    ([{"role": "assistant", "content": "", "function_call": {}}], r"function_call: unknown field"),
    ([{"role": "assistant", "content": "", "tool_calls": "f()"}], r"message 0: tool_calls: expected a list, got str"),
    ([*CALL, {"role": "tool", "content": "", "tool_call_id": 3}], r"message 1: tool_call_id: expected a short text"),
    ([*CALL, {"role": "tool", "content": "", "tool_call_id": "d"}], r"message 1: tool_call_id: 'd'; expected 'c'"),
    ([*CALL, {"role": "tool", "content": "", "name": "g"}], r"message 1: name: 'g'; expected 'f'"),
    ([*CALL, *[{"role": "tool", "content": ""}] * 2], r"message 2: a tool result, but every call before it"),
    ([*CALL, USER_SAYS, {"role": "tool", "content": ""}], r"message 2: a tool result, but every call before it"),
    ([{"role": "tool", "content": ""}], r"message 0: a tool result, but every call before it"),
    ([USER_SAYS, {"role": "system", "content": ""}], r"role: only the first message may be a system message"),
    (calling({"name": "f"}), r"message 0: tool_calls\[0\]\.function\.arguments: expected an object, got NoneType"),
    (calling({"name": "f", "arguments": "{'a': 1}"}), r"tool_calls\[0\]\.function\.arguments: not JSON"),
    (calling({"name": "f", "arguments": "{"}), r"function\.arguments: not JSON"),
    (calling({"name": "f", "arguments": "[1]"}), r"function\.arguments: expected an object, got list"),
    (calling({"name": "f", "arguments": "{} {}"}), r"function\.arguments: not JSON: more text after character 2"),
    (calling({"name": "f", "arguments": '{"a": NaN}'}), r"function\.arguments: not JSON: NaN is not a JSON number"),
    (calling({"name": "f", "arguments": '{"a": 1, "a": 2}'}), r"key 'a' is given twice"),
    (calling({"name": "f", "arguments": '{"a": ' + "[" * 100_000}), r"nested deeper than 64 levels"),
    (calling({"name": "f", "arguments": '{"a": "' + "x" * 10_000_000 + '"}'}), r"longer than 1,048,576 characters"),
    (calling({"name": "f", "arguments": {"a": float("inf")}}), r"\[0\]\.'f': arguments: inf is not a JSON number"),
    (calling({"name": "f", "arguments": {"a": {1: 2}}}), r"expected a key of type str, got int"),
    (calling({"name": "f", "arguments": {"a": object()}}), r"expected JSON .* got object"),
    (calling({"name": "f", "arguments": {"a": SURROGATE}}), r"half a character"),
    (calling({"name": "f", "arguments": {SURROGATE: 1}}), r"half a character"),
    (calling({"name": "f", "arguments": {"a": nested(100)}}), r"nested deeper than 64 levels"),
    (calling({"name": "f", "arguments": {"a": 10**5000}}), r"an integer of 16610 bits"),
    (calling({"name": "f", "arguments": {"a": "\x00" * 500_000}}), r"longer than 1,048,576 characters"),
    (calling({"name": "f", "arguments": {"a": [0] * 60_000}}), r"more than 50,000 items"),
    (calling({"name": "", "arguments": {}}), r"tool_calls\[0\]\.name: expected the name of a tool"),
    (calling({"name": None, "arguments": {}}), r"name: expected the name of a tool, got None"),
    (calling({"name": "f" * 1000, "arguments": {}}), r"name: 1,000 characters; expected at most 512"),
    (calling({"name": SURROGATE, "arguments": {}}), r"name: character 1 is half a character"),
    (calling({"name": "f", "arguments": {}, "x": 1}), r"function\.x: unknown field"),
    (calling({"name": "f", "arguments": {}}, type="code"), r"tool_calls\[0\]\.type: 'code'; expected 'function'"),
    (calling({"name": "f", "arguments": {}}, index=0), r"tool_calls\[0\]\.index: unknown field"),
    (calling("f"), r"tool_calls\[0\]\.function: expected an object, got str"),
    ([{**CALL[0], "tool_calls": CALL[0]["tool_calls"] * 1_000_000}], r"tool_calls: 1,000,000;"),
    ([USER_SAYS] * 100_001, r"messages: 100,001; expected at most 100,000"),
]  # fmt: skip
MALFORMED_TOOLS = [
    ("[", r"tools: not JSON"),
    ("{}", r"tools: expected a list, got dict"),
    ("[" * 100_000, r"tools: nested deeper than 64 levels"),
    (["f"], r"tool 0: function: expected an object, got str"),
    ([{"type": "code_interpreter"}], r"tool 0: type: 'code_interpreter'; expected 'function'"),
    ([{"type": "function", "function": {"description": "d"}}], r"tool 0: name: expected the name of a tool, got None"),
    ([{"type": "function", "function": {"name": "f", "parameters": "{}"}}], r"tool 0: parameters: expected an object"),
    ([{"type": "function", "function": {"name": "f", "description": 5}}], r"tool 0: description: expected text"),
    ([{"type": "function", "function": {"name": "f", "strictly": True}}], r"tool 0: function\.strictly: unknown field"),
    ([{"type": "function", "function": {"name": "f"}}] * 2, r"tool 1: name: 'f' is also the name of tool 0"),
    ([{"type": "function", "function": {"name": "f"}}] * 1_000_000, r"tools: 1,000,000; expected at most 1,024"),
]


def assert_refused(messages, tools, reason) -> None:
    with pytest.raises(InputError) as caught:
        from_openai(messages, tools)
    assert re.search(reason, str(caught.value)), str(caught.value)[:300]
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize(("messages", "reason"), MALFORMED, ids=[reason[:50] for _, reason in MALFORMED])
def test_malformed_conversations_are_refused(messages, reason):
    assert_refused(messages, None, reason)


@pytest.mark.parametrize(("tools", "reason"), MALFORMED_TOOLS, ids=[reason[:50] for _, reason in MALFORMED_TOOLS])
def test_malformed_tools_are_refused(tools, reason):
    assert_refused([USER_SAYS], tools, reason)


KEYS = st.sampled_from([
    "role", "content", "tool_calls", "tool_call_id", "name", "function", "arguments", "type", "text", "id",
    "parameters", "description", "reasoning_content", "image_url", "x", "a\nb", SURROGATE,
])  # fmt: skip
WORDS = st.sampled_from(
    ["system", "user", "assistant", "tool", "function", "text", "image", "{}", '{"a": 1}', "[", "", "f"]
)
LEAVES = st.one_of(WORDS, st.text(max_size=3), st.none(), st.booleans(), st.integers(), st.floats(), st.just(SURROGATE))
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=20,
)
MESSAGE = st.fixed_dictionaries(
    {"role": WORDS, "content": ANYTHING},
    optional={
        "tool_calls": st.lists(st.fixed_dictionaries({"function": st.dictionaries(KEYS, ANYTHING)}), max_size=2),
        "tool_call_id": ANYTHING,
        "reasoning_content": ANYTHING,
    },
)


@pytest.mark.parametrize("examples", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_any_json_is_a_conversation_or_refused(examples):
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(messages=st.one_of(ANYTHING, st.lists(MESSAGE, max_size=4)), tools=st.one_of(st.none(), ANYTHING))
    def check(messages, tools):
        try:
            conversation = from_openai(messages, tools)
        except InputError as error:
            said = str(error)
        else:
            said = ""
            assert_rendered(conversation)
        assert len(said) < 500 and "\n" not in said and said.isprintable()

    def assert_rendered(conversation):
        for dialect in DIALECTS:
            with contextlib.suppress(InputError):
                assert_consistent(render(conversation, BYTES, dialect), BYTES)

    check()


def test_surplus_images_are_refused():
    with pytest.raises(InputError, match=r"images: 1 more than"):
        from_openai([USER_SAYS], images=[Image([1])])


def test_conversations_that_cannot_be_rendered():
    with pytest.raises(InputError, match=r"declares tools in the first user message, but there is none"):
        render(Conversation([Message(ASSISTANT, "x")], [Tool("f")]), BYTES, "hugging_face")
    with pytest.raises(InputError, match=r"tokenizer bytes has no control token <\|reasoning_thinking_start\|>"):
        render(Conversation([Message(ASSISTANT, "x", thought="y")]), BYTES)
    with pytest.raises(InputError, match=r"only the assistant calls tools"):
        Message(USER, "x", [ToolCall("f")])
    with pytest.raises(InputError, match=r"role: 'user'"):
        Message("user", "x")  # pyright: ignore[reportArgumentType]
