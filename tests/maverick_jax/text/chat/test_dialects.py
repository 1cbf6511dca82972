"""Dialects: written calls are parsed back, and malformed calls give an error with the whole text."""

import concurrent.futures
import json
import pathlib
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import (
    DIALECTS,
    CallError,
    Conversation,
    Message,
    Reply,
    Role,
    ToolCall,
    find_dialect,
    render,
)
from tests.helpers.chats import CALLS, TEXTS

BYTES = load_tokenizer("bytes")
dialects = pytest.mark.parametrize("dialect", DIALECTS)


def reply_to(message: Message, dialect: str, tokenizer=BYTES) -> Reply | CallError:
    """`message` rendered and parsed back."""
    rendered = render(Conversation([message]), tokenizer, dialect)
    return find_dialect(dialect).parse_calls(rendered.ids[rendered.decisions[0] :], tokenizer)


def assert_parsed_back(message: Message, dialect: str, tokenizer=BYTES) -> None:
    found = reply_to(message, dialect, tokenizer)
    assert isinstance(found, Reply), found
    # unlike ==, repr distinguishes 1 from 1.0 and True, 0.0 from -0.0, and the order of keys
    assert repr((found.text, found.calls)) == repr((message.text, tuple(message.calls)))


@pytest.mark.parametrize("examples", [300, pytest.param(10_000, marks=pytest.mark.slow)])
@dialects
def test_calls_are_parsed_back(dialect, examples):
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(text=st.one_of(st.just(""), TEXTS), calls=st.lists(CALLS, min_size=1, max_size=3))
    def check(text, calls):
        assert_parsed_back(Message(Role.ASSISTANT, text, calls), dialect)

    check()


@dialects
def test_calls_are_parsed_back_with_merged_tokens(dialect, small_llama4):
    arguments = {"q": 'say "hi")] <|python_end|>\n', "n": [1, 1.0, True, None, {"": [[]]}], "e": {}, "not a name": "🙂"}
    for text in ("", "Let me see: [f(a=1)]"):
        calls = [ToolCall("api.search", arguments), ToolCall("create-issue", {"a": -1}), ToolCall("now")]
        assert_parsed_back(Message(Role.ASSISTANT, text, calls), dialect, small_llama4)


@dialects
def test_the_deepest_and_longest_arguments_are_parsed_back(dialect):
    deep = value = []
    for _ in range(62):
        value.append([])
        value = value[0]
    arguments = {"deep": deep, "long": "x" * 200_000, "odd-key": list(range(9_000)), "big": -(10**4200)}
    assert_parsed_back(Message(Role.ASSISTANT, "", [ToolCall("f", arguments)]), dialect)
    assert_parsed_back(Message(Role.ASSISTANT, "", [ToolCall("f", {"a": i}) for i in range(256)]), dialect)


@pytest.mark.parametrize(
    ("dialect", "written"),
    [
        ("meta_pythonic", '[get_weather(city="SF", days=3, flags={"a": [True, None, 1.5]}), now()]'),
        ("meta_pythonic", "[ get_weather(city='SF',days=3,flags={'a':(True,None,1.5,)},), now( ) ]\n"),
        ("meta_pythonic", '[get_weather(city="S" "F", days=+3, **{"flags": {"a": [True, None, 15e-1]}}), "now"()]'),
        ("meta_pythonic", '[get_weather(city="""SF""", days=0x3, flags={"a": [True, None, 1.5]}),\n now()]'),
        ("meta_pythonic", '[get_weather(city="SF", days=3, flags={"a": [true, null, 1.5]})]\n[now()]'),
        ("meta_pythonic", '[get_weather(city="SF", days=3, flags={"a": [True, none, 1.5]})], [now()]'),
        ("meta_pythonic", ' [get_weather(city="SF", days=3, flags={"a": [true, None, 1.5]})][now()] '),
        ("meta_json", '{"type": "function", "name": "get_weather", "parameters": {"city": "SF", "days": 3, "flags": '
                      '{"a": [true, null, 1.5]}}}; {"name": "now", "parameters": {}}'),
        ("hugging_face", '{"name": "get_weather", "parameters": {"city": "\\u0053F", "days": 3, "flags": '
                         '{"a": [true, null, 1.5]}}}\n{"parameters": {}, "name": "now"}'),
    ],
)  # fmt: skip
def test_variants_of_written_calls(dialect, written):
    calls = (ToolCall("get_weather", {"city": "SF", "days": 3, "flags": {"a": [True, None, 1.5]}}), ToolCall("now"))
    assert find_dialect(dialect).parse_calls(written, BYTES) == Reply("", calls)
    start, end, stop = (BYTES.controls[f"<|{name}|>"] for name in ("python_start", "python_end", "eot"))
    for ids in (
        [*BYTES.encode(written), stop],
        [start, *BYTES.encode(written), end, stop],
        [start, *BYTES.encode(written)],
        [start, *BYTES.encode(written), end, BYTES.eos_id, *BYTES.encode("not read")],
    ):
        assert find_dialect(dialect).parse_calls(ids, BYTES) == Reply("", calls)


@dialects
@pytest.mark.parametrize("text", ["", "Sure.", "[1] says", "[x] done", "{'a': 1}", '{"answer": 42}', "f(x)", " "])
def test_answers_without_calls(dialect, text):
    assert find_dialect(dialect).parse_calls(text, BYTES) == Reply(text)
    assert reply_to(Message(Role.ASSISTANT, text), dialect) == Reply(text)


@dialects
def test_thoughts(dialect, small_llama4):
    calls = [ToolCall("f", {"a": "<|reasoning_thinking_end|>"})]
    for message in (
        Message(Role.ASSISTANT, "Hi", thought="[g()] <|eot|>"),
        Message(Role.ASSISTANT, "Hi", calls, "why"),
        Message(Role.ASSISTANT, "", calls, "why"),
    ):
        found = reply_to(message, dialect, small_llama4)
        assert isinstance(found, Reply)
        assert found.message() == message
    unfinished = [small_llama4.controls["<|reasoning_thinking_start|>"], *small_llama4.encode("hm")]
    assert find_dialect(dialect).parse_calls(unfinished, small_llama4) == Reply("", (), "hm")


@dialects
def test_a_written_python_end_is_text(dialect):
    text = "a<|python_end|>b<|eot|>"
    found = reply_to(Message(Role.ASSISTANT, text, [ToolCall(text, {text: text})]), dialect)
    assert found == Reply(text, (ToolCall(text, {text: text}),))


PYTHONIC = [
    ("[f(", r"not a list of calls"),
    ("[f(a=1)", r"never closed"),
    ("[f(a=1)] then more", r"not a list of calls"),
    ("[f(1)]", r"'f': argument a constant has no name"),
    ("[f(*a)]", r"unexpected '\*a\)\]'"),
    ("[f(**a)]", r"unexpected '\*\*a\)\]'"),
    ("[f(a=1, a=2)]", r"argument 'a' is given twice"),
    ('[f(a=1, **{"a": 2})]', r"argument 'a' is given twice"),
    ('[f(a={"k": 1, "k": 2})]', r"key 'k' is given twice"),
    ("[f(a={1: 2})]", r"a key of a dictionary is not a string"),
    ('[f(a={**{"b": 1}})]', r"a key of a dictionary is not a string"),
    ("[f(a={1, 2})]", r"a set is not a literal"),
    ("[f(a=lambda: 1)]", r"a lambda is not a literal"),
    ("[f(a=b)]", r"name 'b' is not a literal"),
    ("[f(a=b.c)]", r"a attribute is not a literal"),
    ("[f(a=g())]", r"a call is not a literal"),
    ('[f(a=__import__("os").system("id"))]', r"unexpected '\.system|is not a literal"),
    ('[f(a=f"{b}")]', r"f-string is not a literal"),
    ('[f(a=b"x")]', r"a constant is not a literal"),
    ("[f(a=1j)]", r"a constant is not a literal"),
    ("[f(a=1+1)]", r"a binop is not a literal"),
    ("[f(a=--1)]", r"unexpected '--1"),
    ("[f(a=-True)]", r"a unaryop is not a literal"),
    ('[f(a=-"x")]', r"a unaryop is not a literal"),
    ("[f(a=not 1)]", r"a unaryop is not a literal"),
    ("[f(a=[x for x in y])]", r"a listcomp is not a literal"),
    ("[f(a=1 if b else 2)]", r"a ifexp is not a literal"),
    ("[f(a=(b:=1))]", r"a namedexpr is not a literal"),
    ("[f(a=[1][0])]", r"a subscript is not a literal"),
    ("[f(a=1), 2]", r"expected a call"),
    ("[f(a=1)()]", r"expected the name of a tool"),
    ("[f(a=1).g()]", r"unexpected '\.g"),
    ("[f(a=1e999)]", r"inf is not a JSON number"),
    ("[f(a=nan)]", r"name 'nan' is not a literal"),
    ("[f(a=TRUE)]", r"name 'TRUE' is not a literal"),
    ("[f(a=-true)]", r"a unaryop is not a literal"),
    ("[f(a={null: 1})]", r"a key of a dictionary is not a string"),
    ("[true()] [null]", r"expected a call, name\(key=value\), got name 'null'"),
    ("[f(a=1)] [g(b=2)", r"not a list of calls"),
    ("[f(a=1)] and [g(b=2)]", r"expected a list of calls"),
    ("[f(a=1)] []", r"expected a list of calls"),
    ("[f(a=1)] (g(),)", r"expected a list of calls|not a list of calls"),
    ("[f()]" * 300, r"300 calls; expected at most 256"),
    ("[f(a=" + "9" * 5000 + ")]", r"Exceeds the limit"),
    ("[f(a=...)]", r"unexpected"),
    ("[f(a=`b`)]", r"unexpected"),
    ("[f(a=1)\n# comment\n]", r"unexpected"),
    ('[f(a="\\N{NOPE}")]', r"not a list of calls"),
    ('[f(a="\\ud800")]', r"half a character"),
    ('[f(a="open)]', r"unexpected"),
    ('[f(a="""open)]', r"unexpected|not a list"),
    ("[f(a=" + "[" * 100_000, r"nested deeper than 64 levels"),
    ("[f(a=" + "[" * 190 + "]" * 190 + ")]", r"nested deeper than 64 levels"),
    ("[f(a=" + "-" * 100_000 + "1)]", r"unexpected"),
    ("[f(a=" + "not " * 50_000 + "1)]", r"not a list of calls|too complex"),
    ("[f(a=" + "lambda:" * 50_000 + "1)]", r"not a list of calls|too complex"),
    ("[f(a=" + "1 if 1 else " * 20_000 + "1)]", r"not a list of calls|too complex|not a literal"),
    ("[f(a" + ".b" * 100_000 + "=1)]", r"unexpected|too complex|not a list"),
    ("[f(a=[" + "0," * 400_000 + "])]", r"more than 50,000 items"),
    ('[f(a="' + "x" * 10_000_000 + '")]', r"longer than"),
    ("[" + "f()," * 10_000 + "]", r"10,000 calls"),
    ("[" + "f()," * 1_000_000 + "]", r"longer than"),
]
JSON = [
    ('{"name": "f"', r"call 0: not JSON"),
    ('{"name": "f"}', r"'parameters' is missing"),
    ('{"parameters": {}}', r"'name' is missing"),
    ('{"name": "f", "parameters": {}, "x": 1}', r"unknown key 'x'"),
    ('{"name": "f", "parameters": "{}"}', r"parameters: expected an object, got str"),
    ('{"name": 1, "parameters": {}}', r"name: expected the name of a tool"),
    ('{"name": "", "parameters": {}}', r"name: expected the name of a tool"),
    ('{"type": "code", "name": "f", "parameters": {}}', r"type: 'code'"),
    ('{"name": "f", "name": "g", "parameters": {}}', r"key 'name' is given twice"),
    ('{"name": "f", "parameters": {"a": {"b": 1, "b": 1}}}', r"key 'b' is given twice"),
    ('{"name": "f", "parameters": {"a": NaN}}', r"NaN is not a JSON number"),
    ('{"name": "f", "parameters": {"a": -Infinity}}', r"-Infinity is not a JSON number"),
    ('{"name": "f", "parameters": {"a": 1e999}}', r"inf is not a JSON number"),
    ('{"name": "f", "parameters": {"a": "\\ud800"}}', r"half a character"),
    ('{"name": "f", "parameters": {"a": ' + "9" * 5000 + "}}", r"not JSON: Exceeds the limit"),
    ('{"name": "f", "parameters": {}} and more', r"call 1: not JSON"),
    ('{"name": "f", "parameters": {}} {"name": "g"}', r"call 1: 'parameters' is missing"),
    ('{"name": "f", "parameters": {"a": ' + "[" * 100 + "]" * 100 + "}}", r"nested deeper than 64 levels"),
    ('{"name": "f", "parameters": {"a": ' + "[" * 500_000, r"nested deeper than 64 levels"),
    ('{"name": "f", "parameters": {"a": "' + "x" * 10_000_000 + '"}}', r"longer than"),
    ('{"name": "f", "parameters": {"a": [' + "0," * 60_000 + "0]}}", r"more than 50,000 items"),
    ('{"name": "f", "parameters": {}}' * 257, r"more than 256 calls"),
    ('{"name": "f", "parameters": {}}' * 1_000_000, r"longer than"),
]
CASES = [
    *(("meta_pythonic", *case) for case in PYTHONIC),
    *(("meta_json", *case) for case in JSON),
    *(("hugging_face", *case) for case in JSON),
]


@pytest.mark.parametrize(("dialect", "text", "reason"), CASES, ids=[f"{d}-{t[:40]!r}" for d, t, _ in CASES])
def test_a_malformed_call_is_an_error_with_its_text(dialect, text, reason):
    begin = time.process_time()
    found = find_dialect(dialect).parse_calls(text, BYTES)
    assert time.process_time() - begin < 5
    assert isinstance(found, CallError), found
    assert found.text == text
    assert re.search(reason, found.reason), found.reason
    assert len(found.reason) < 400


@dialects
def test_misplaced_control_tokens_are_errors(dialect):
    start, end, header = (BYTES.controls[f"<|{name}|>"] for name in ("python_start", "python_end", "header_start"))
    call = BYTES.encode('[f(a="b")]' if dialect == "meta_pythonic" else '{"name": "f", "parameters": {"a": "b"}}')
    for ids in ([*call, header], [start, *call, header, end], [start, *call[:-3], end, *call[-3:]], [end, *call]):
        found = find_dialect(dialect).parse_calls(ids, BYTES)
        assert isinstance(found, CallError), found
        assert found.text == BYTES.decode(ids, controls=True)


@dialects
@settings(max_examples=200)
@given(text=st.one_of(TEXTS, st.text(), st.text("[](){}\"'=,:*.-f1 \\", max_size=30)))
def test_any_text_is_a_reply_or_an_error(dialect, text):
    for begin in ("", "[f(", '{"name": "f", "parameters": '):
        found = find_dialect(dialect).parse_calls(begin + text, BYTES)
        assert isinstance(found, CallError | Reply)
        assert not isinstance(found, CallError) or found.text == begin + text


def test_an_unknown_dialect_is_an_error():
    with pytest.raises(InputError, match=r"did you mean meta_json"):
        find_dialect("meta-json")


@dialects
def test_the_example_in_the_docs_is_what_is_written(dialect):
    page = (pathlib.Path(__file__).parents[4] / "docs" / "reference" / "chat.md").read_text("utf-8").replace("\\|", "|")
    calls = [ToolCall("f", {"a": 1, "b": "x"}), ToolCall("g")]
    text = render(Conversation([Message(Role.ASSISTANT, "", calls)]), BYTES, dialect).text
    written = text.split("<|header_end|>\n\n")[1].removesuffix("<|eot|>").removesuffix("<|eom|>")
    shown = written if dialect == "meta_pythonic" else written[: written.index("}{") + 2]
    assert shown in page


def test_calls_in_json_dialects_are_json():
    """Any JSON parser reads the arguments."""
    arguments = {"a": [1, 2.5, None, True, "é\n"], "b": {}}
    text = render(Conversation([Message(Role.ASSISTANT, "", [ToolCall("f", arguments)])]), BYTES, "meta_json").text
    assert json.loads(text[text.index("{") : text.rindex("}") + 1])["parameters"] == arguments


BEGINNINGS = {
    "meta_pythonic": [' [ "a b\\"c" (x=1)]', "[f.g (", "['a\\'b'(", "\n[ünder_score1("],
    "meta_json": [' { "type" : 1', '{"name":', '{\n"parameters"  :'],
    "hugging_face": ['{"name" :', ' {"type":"function"'],
}


@dialects
def test_every_beginning_of_calls_may_begin_calls(dialect):
    for text in BEGINNINGS[dialect]:
        found = [find_dialect(dialect).begins_call(text[:i]) for i in range(len(text) + 1)]
        assert found[-1] is True and set(found[: found.index(True)]) == {None}


@dialects
@given(text=st.text(alphabet="[{(\"'\\ \nab.:_,})]typename", max_size=24))
def test_a_text_that_begins_no_calls_begins_none_however_it_goes_on(dialect, text):
    found = [find_dialect(dialect).begins_call(text[:i]) for i in range(len(text) + 1)]
    decided = [answer for answer in found if answer is not None]
    assert len(set(decided)) <= 1 and found == [None] * (len(found) - len(decided)) + decided


def test_calls_are_parsed_in_several_threads():
    """Python's parser before 3.12 must not be entered by two threads at once."""
    texts = [f"[f(a={i}, b=[{'[' * (i % 8)}{i}{']' * (i % 8)}])]" for i in range(400)]
    dialect = find_dialect("meta_pythonic")
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda text: dialect.parse_calls(text, BYTES), texts))
    assert [reply.calls[0].arguments["a"] for reply in found] == list(range(400))
