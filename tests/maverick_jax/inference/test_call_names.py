"""Answers that can call allowed tools only: the mask equals a slow twin, and no engine writes another name."""

import string

import numpy as np
import pytest

from maverick_jax.inference.call_names import CallNames
from maverick_jax.inference.engine.requests import GenerationRequest
from maverick_jax.inference.prompts import stop_ids
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import DIALECTS, Reply, ToolCall
from maverick_jax.text.tokenizers.byte_pairs import train_byte_pairs
from tests.helpers.scripted_engine import ScriptedEngine

BYTES = load_tokenizer("bytes")
NAMES = ("find_order", "find_other", "shop.refund")
CALLS = {
    "meta_pythonic": '[find_order(order="A1"), pay_back(order="A1")]',
    "meta_json": '{"type": "function", "name": "pay_back", "parameters": {"order": "A1"}}',
    "hugging_face": '{"name": "pay_back", "parameters": {"order": "A1"}}',
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    texts = [f'[{name}(order="A1"), {name}(b=2)] {{"name": "{name}", "parameters": {{}}}}' for name in NAMES] * 4
    train_byte_pairs(iter(texts), 320, folder)
    return load_tokenizer(str(folder))


@pytest.mark.parametrize(
    "text", ["[", "[find_o", "[find_order(a=1), ", '{"name": ', '{"name": "shop', "[f", "[find_ot"]
)
def test_the_mask_equals_a_twin_that_tries_every_token(pairs, text):
    dialect = DIALECTS["meta_json" if text[0] == "{" else "meta_pythonic"]
    place = dialect.open_name(pairs.encode(text), pairs)
    assert place is not None
    wanted = list(place.continuations(NAMES))
    mask = CallNames(pairs, dialect, pairs.vocab_size).mask(wanted, place.must)
    for token in range(pairs.vocab_size):
        own = pairs.bytes_of(token)
        agrees = own is not None and any(w.encode().startswith(own) or own.startswith(w.encode()) for w in wanted)
        begins = own is not None and own.lstrip()[:1].decode("ascii", "replace")
        other = begins is not False and not place.must and begins not in {*string.ascii_letters, "_", "'", '"'}
        if own is None or own[:1] < b"\x80":
            assert bool(mask[token]) == (agrees or other), own


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_engine_that_wants_to_call_another_tool_calls_an_allowed_one(dialect):
    script = [*BYTES.encode(CALLS[dialect]), BYTES.controls["<|eot|>"]]
    engine = ScriptedEngine(BYTES, lambda request: script)
    names = CallNames(BYTES, DIALECTS[dialect], engine.vocab_size)
    written = []
    for allowed in (None, ("find_order", "pay_it"), ()):
        own = None if allowed is None else names.filter(allowed)
        (generation,) = engine.submit(GenerationRequest([1], 200, stop_ids=stop_ids(BYTES), allowed=own))
        written.append(list(generation.result().tokens))
    engine.close()
    plain, masked, nothing = (BYTES.decode(tokens) for tokens in written)
    assert "pay_back" in plain and "pay_it" in masked and "pay_back" not in masked
    assert nothing == plain, "where no tool is allowed nothing is masked: the gate refuses the call"


def test_text_and_arguments_are_not_masked():
    names = CallNames(BYTES, DIALECTS["meta_pythonic"], 300)
    own = names.filter(["find_order"])
    for text in ("", "Hello", "[find_order(", "[find_order(order=", '[find_order(order="pay', "[1", "no [pay"):
        assert own.mask(BYTES.encode(text)) is None
    mask = own.mask(BYTES.encode("[fin"))
    assert mask is not None and np.flatnonzero(mask).tolist() == [ord("d")]
    reply = DIALECTS["meta_pythonic"].parse_calls('[find_order(order="A1")]', BYTES)
    assert reply == Reply("", (ToolCall("find_order", {"order": "A1"}),))
