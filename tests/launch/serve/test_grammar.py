"""Answers of a required form: whatever the model would rather write, they satisfy the schema, or are calls."""

import json

import jsonschema
import numpy as np
import pytest

from launch.serve import grammar
from launch.serve.errors import ApiError
from launch.serve.grammar import Grammars
from maverick_jax.inference.prompts import stop_ids
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import DIALECTS, Reply, Tool, find_dialect

BYTES = load_tokenizer("bytes")
SCHEMA = {
    "type": "object",
    "properties": {
        "yes": {"type": "boolean"},
        "kind": {"enum": ["a", "b", None]},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2},
    },
    "required": ["yes", "kind"],
    "additionalProperties": False,
    "$defs": {"part": {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}},
}


def schema(*required: str, **properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(required)}


TOOLS = (
    Tool(
        "get_weather",
        "",
        schema("city", city={"enum": ["Paris", 'a "b"']}, days={"enum": [1, None]}, sure={"type": "boolean"}),
    ),
    Tool("now"),
    Tool("shop.list-all", "", schema("a-b", **{"a-b": {"enum": [True, 1.5]}})),
    Tool("nested", "", schema("x", x=schema("y", y={"enum": [[1], {}]}))),
    Tool("optional", "", schema(one={"const": 1}, two={"const": 2})),
)


def drawn(grammars: Grammars, text: str, seed: int, most: int = 400) -> list[int]:
    """Ids drawn at random among those that the grammar allows, up to one that ends the answer."""
    draw, written, following = np.random.default_rng(seed), [], grammars.filter(text)
    while len(written) < most:
        allowed = np.flatnonzero(following.mask(written))
        likely = [i for i in allowed if i in {*b'"]})'} or i in stop_ids(BYTES)]
        written.append(int(draw.choice(likely if likely and draw.random() < 0.3 else allowed)))
        if written[-1] in stop_ids(BYTES):
            return written
    raise AssertionError(f"no end: {BYTES.decode(written)!r}")


def test_answers_satisfy_a_schema():
    grammars = Grammars(BYTES, 300)
    text = grammars.of_schema(SCHEMA, "response_format")
    found = [json.loads(BYTES.decode(drawn(grammars, text, seed))) for seed in range(30)]
    for value in found:
        jsonschema.validate(value, SCHEMA)
    assert len({json.dumps(value) for value in found}) > 10


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("several", [False, True])
def test_required_calls_are_calls_of_the_tools(dialect, several):
    grammars, schemas = Grammars(BYTES, 271), {tool.name: tool.parameters for tool in TOOLS}
    text = grammars.of_calls(TOOLS, find_dialect(dialect), several)
    names, most = set(), 0
    for seed in range(40):
        reply = find_dialect(dialect).parse_calls(drawn(grammars, text, seed), BYTES)
        assert isinstance(reply, Reply) and reply.calls, reply
        most = max(most, len(reply.calls))
        for call in reply.calls:
            names.add(call.name)
            jsonschema.validate(dict(call.arguments), schemas[call.name])
    assert names == set(schemas) and (most > 1) == several


def test_the_filter_does_not_depend_on_how_often_it_is_asked():
    grammars = Grammars(BYTES, 271)
    text = grammars.of_schema({"enum": ["abc", "abd"]}, "x")
    often, once = grammars.filter(text), grammars.filter(text)
    for n in range(4):
        often.mask(list(b'"abd"')[:n])
    wanted = np.flatnonzero(once.mask(list(b'"ab')))
    assert wanted.tolist() == [ord("c"), ord("d")] == np.flatnonzero(often.mask(list(b'"ab'))).tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "nonsense"},
        {"$ref": "#/$defs/none"},
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"type": "string", "pattern": "("},
        {"type": "object", "description": "x" * grammar.MAX_SCHEMA},
    ],
)
def test_schemas_that_cannot_be_followed_are_refused(wrong):
    with pytest.raises(ApiError) as caught:
        Grammars(BYTES, 271).of_schema(wrong, "response_format")
    assert caught.value.status == 400 and caught.value.param == "response_format"


def test_without_the_library_the_request_is_refused(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *given, **more):
        if name.startswith("llguidance"):
            raise ImportError(name)
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ApiError, match="grammar") as caught:
        Grammars(BYTES, 271).of_schema({}, "response_format")
    assert caught.value.status == 400


def test_names_and_texts_of_a_request_do_not_become_grammar():
    hostile = Tool('x"\nstart: /.*/ //', "", {"type": "object", "properties": {'k" | /.*/': {"const": '"]\nfoo'}}})
    for dialect in DIALECTS:
        grammars = Grammars(BYTES, 271)
        text = grammars.of_calls([hostile], find_dialect(dialect), False)
        reply = find_dialect(dialect).parse_calls(drawn(grammars, text, 1), BYTES)
        assert isinstance(reply, Reply) and [call.name for call in reply.calls] == [hostile.name]
