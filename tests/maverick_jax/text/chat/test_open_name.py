"""Where the name of a call is being written: in every prefix of what the dialects write, and in nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import DIALECTS, Conversation, Kind, Message, Role, ToolCall, json_calls, pythonic, render

BYTES = load_tokenizer("bytes")
ARGUMENTS = {"note": 'say "[name(" and {"name": "x"}', "list": [1, {"name": "inner"}], "text": "it's, b(", "n": 2}


def places(dialect, message):
    """(ids of the message, for each number of them whether the next token is one of a tool's name)."""
    found = render(Conversation([Message(Role.USER, "Hi"), message]), BYTES, dialect)
    own = [i for i in range(found.ids.size) if found.messages[i] == 1]
    spans = {i for span in found.spans if span.kind is Kind.CALL_NAME for i in range(span.begin, span.end)}
    header = found.ids.tolist().index(BYTES.controls["<|header_end|>"], own[0]) if own else 0
    first = header + 1 + len(BYTES.encode("\n\n"))
    return found.ids.tolist()[first : own[-1]], [i in spans for i in range(first, own[-1])]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("text", ["", "I look it up."])
def test_every_name_that_a_dialect_writes_is_followed_letter_by_letter(dialect, text):
    calls = (ToolCall("find_order", ARGUMENTS), ToolCall("shop.refund", {"order": "A1"}))
    ids, in_name = places(dialect, Message(Role.ASSISTANT, text, calls))
    assert sum(in_name) == len("find_ordershop.refund")
    found = [DIALECTS[dialect].open_name(ids[:n], BYTES) for n in range(len(ids))]
    named = [place is not None and ids[n] != ord('"') and not chr(ids[n]).isspace() for n, place in enumerate(found)]
    ends = {n for n in range(len(ids)) if n and in_name[n - 1] and not in_name[n]}  # the place still is the name's
    assert [n for n, is_named in enumerate(named) if is_named and n not in ends] == [
        n for n, is_named in enumerate(in_name) if is_named
    ]
    for name in ("find_order", "shop.refund"):
        begin = BYTES.decode(ids).index(name)
        assert [found[n].written for n in ends if n == begin + len(name)] in ([name], [])


@given(st.text(alphabet="[]{}\"'(),: \\nabname_1", max_size=40))
def test_any_text_has_a_place_or_none(text):
    for notation in (pythonic, json_calls):
        place = notation.open_name(text)
        assert place is None or text.rstrip().endswith(place.written)


@pytest.mark.parametrize("text", ["I would [call find", "[1, 2, fi", "{find", '{"order": "fi', "Hello", "[1]"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_plain_text_has_no_open_name(dialect, text):
    assert DIALECTS[dialect].open_name(BYTES.encode(text), BYTES) is None
