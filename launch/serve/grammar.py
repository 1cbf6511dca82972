"""Answers of a required form, with the library llguidance (extra `grammar`): a JSON schema, or calls of given tools."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from launch.serve.errors import ApiError, refused
from maverick_jax.inference.engine.requests import TokenFilter
from maverick_jax.inference.prompts import stop_ids
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Tool, json_calls, pythonic
from maverick_jax.text.chat.dialects import Dialect

MAX_SCHEMA = 256 << 10
"""Characters of a schema."""
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammars:
    """Makes filters for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size

    def of_schema(self, schema: dict[str, Any], param: str) -> str:
        """The grammar of JSON that satisfies `schema`. Raises ApiError."""
        return self._checked(f"start: %json {_schema_text(schema, param)}", param)

    def of_calls(self, tools: Sequence[Tool], dialect: Dialect, several: bool) -> str:
        """The grammar of one call of one of `tools`, or of several. Raises ApiError."""
        makers = {id(pythonic): _pythonic_call, id(json_calls): _json_call}
        make = makers[id(dialect.notation)]
        rules = [make(i, tool, dialect) for i, tool in enumerate(tools)]
        call = " | ".join(f"call{i}" for i in range(len(tools)))
        if dialect.notation is pythonic:
            start = f"""start: "[" call {'(", " call)*' if several else ""} "]"\ncall: {call}"""
        else:
            start = f"start: call{'+' if several else ''}\ncall: {call}"
        return self._checked("\n".join([start, *rules]), "tools")

    def filter(self, grammar: str) -> TokenFilter:
        return _GrammarFilter(self._library_tokenizer, grammar, self._vocab_size)

    def _checked(self, grammar: str, param: str) -> str:
        tokenizer = self._library_tokenizer
        from llguidance import LLMatcher

        problem, messages = LLMatcher.validate_grammar_with_warnings(grammar, tokenizer)
        if problem:
            raise refused(param, f"cannot be required: {' '.join(messages)[:500]}")
        return grammar

    @functools.cached_property
    def _library_tokenizer(self) -> Any:
        try:
            import llguidance
        except ImportError:
            raise ApiError(
                400, "answers of a required form need the server's extra `grammar` (pip install llguidance)"
            ) from None
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_ForLibrary(self._tokenizer)),
            n_vocab=self._vocab_size,
            eos_token=sorted(stop_ids(self._tokenizer)),
        )


class _ForLibrary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer):
        names = {token: name for name, token in tokenizer.controls.items()}
        self.tokens = [
            tokenizer.bytes_of(i) or names.get(i, f"<|no token {i}|>").encode() for i in range(tokenizer.vocab_size)
        ]
        known = {i for i in range(tokenizer.vocab_size) if tokenizer.bytes_of(i) is not None}
        if not known:
            raise ApiError(400, "answers of a required form need a tokenizer of bytes, which this model's is not")
        self.special_token_ids = [i for i in range(tokenizer.vocab_size) if i not in known]
        self.bos_token_id, self.eos_token_id = tokenizer.bos_id, min(stop_ids(tokenizer))
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


class _GrammarFilter(TokenFilter):
    """Follows one answer."""

    def __init__(self, tokenizer: Any, grammar: str, vocab_size: int):
        from llguidance import LLMatcher

        self._matcher, self._followed, self._vocab_size = LLMatcher(tokenizer, grammar), 0, vocab_size

    def mask(self, written: Sequence[int]) -> np.ndarray | None:
        for token in written[self._followed :]:
            self._matcher.consume_token(int(token))
        self._followed = len(written)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if problem := self._matcher.get_error():
            raise RuntimeError(f"the grammar library failed: {problem}")
        return np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool)


def _schema_text(schema: Any, param: str) -> str:
    """The schema for llguidance; JSON is spaced as `json.dumps` does it, so that no answer goes on with white space."""
    text = json.dumps({**schema, "x-guidance": SPACING} if isinstance(schema, dict) else schema)
    if len(text) > MAX_SCHEMA:
        raise refused(param, f"a schema of {len(text):,} characters; expected at most {MAX_SCHEMA:,}")
    return text


def _json_call(i: int, tool: Tool, dialect: Dialect) -> str:
    fixed = {"type": {"const": "function"}} if dialect.name == "meta_json" else {}
    properties = {**fixed, "name": {"const": tool.name}, "parameters": _arguments(tool)}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return f"call{i}: %json {_schema_text(schema, 'tools')}"


def _pythonic_call(i: int, tool: Tool, dialect: Dialect) -> str:
    """`name(a=VALUE, b=VALUE)` with values as JSON, which the dialect reads too; `name(**OBJECT)` where the schema says
    more than which arguments there are. Required arguments come first."""
    schema = _arguments(tool)
    name = tool.name if pythonic.is_dotted(tool.name) else json.dumps(tool.name)
    properties = schema.get("properties", {})
    simple = set(schema) <= {"type", "properties", "required", "additionalProperties", "title", "description"}
    named = isinstance(properties, dict) and all(map(pythonic.is_identifier, properties))
    if not (simple and named and schema.get("additionalProperties", False) is False):
        return f'call{i}: {json.dumps(name + "(**")} %json {_schema_text(schema, "tools")} ")"'
    required = [key for key in schema.get("required", []) if key in properties]
    keys = required + [key for key in properties if key not in required]
    rules = [f'call{i}: {json.dumps(name + "(")} first{i}_0 ")"']
    for at, key in enumerate(keys):
        value = f"value{i}_{at}"
        rules.append(f"{value}: %json {_schema_text(properties[key], 'tools')}")
        begin, more = json.dumps(f"{key}="), json.dumps(f", {key}=")
        if at < len(required):
            rules.append(f"first{i}_{at}: {begin} {value} more{i}_{at + 1}")
            rules.append(f"more{i}_{at}: {more} {value} more{i}_{at + 1}")
        else:
            rules.append(f"first{i}_{at}: {begin} {value} more{i}_{at + 1} | first{i}_{at + 1}")
            rules.append(f"more{i}_{at}: ({more} {value})? more{i}_{at + 1}")
    return "\n".join([*rules, f'first{i}_{len(keys)}: ""', f'more{i}_{len(keys)}: ""'])


def _arguments(tool: Tool) -> dict[str, Any]:
    schema = json.loads(json.dumps(tool.parameters))
    return {"type": "object", **schema, "additionalProperties": schema.get("additionalProperties", False)}
