"""Keeps secrets out of what is shown and stored: config files, logs, records, reports.

A secret is recognized by the name of its key (`api_key`, `HF_TOKEN`; not `max_tokens` or `use_cls_token`), by its place
(user and password of a URL, a signature among its parameters), by its form (tokens of well-known services), and by its
value, if an environment variable with the name of a secret has it.
"""

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[redacted]"
"""What stands in the place of a secret."""

_NOUNS = frozenset([
    "password", "passwd", "passphrase", "passcode", "secret", "secrets", "credential", "credentials", "token",
    "apikey", "accesskey", "secretkey", "privatekey", "authtoken", "accesstoken", "bearer",
])  # fmt: skip
"""Last words of names of secrets."""
_KEYS = frozenset([
    "api", "access", "private", "secret", "auth", "encryption", "signing", "account", "storage", "license", "master",
])  # fmt: skip
"""Words that make `key` a secret."""
_ENDINGS = ("_PWD", "_PASS", "_KEY", "_KEY_ID")
"""More endings of names of secrets, in the environment."""
_NO_TOKENS = frozenset([
    "bos", "eos", "pad", "unk", "cls", "sep", "mask", "special", "control", "image", "patch", "end", "begin", "start",
    "stop", "per", "next", "first", "last", "each", "new", "every", "active", "added",
])  # fmt: skip
"""Words that make `token` a piece of text."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_LEAST = 6
"""Shortest value that is taken for a secret because of its name in the environment."""
_PLAIN = re.compile(r"[a-z_]{1,10}|[\d.,+-]{1,7}")
"""Values that are too common to be hidden everywhere: short words and small numbers."""

_IN_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}://)[^\s/?#@'\"<>]{1,500}@")
_PARAMETER = re.compile(
    r"(?P<name>[?&][\w.-]{0,40}(?:signature|sig|token|key|secret|password|credential)=)[^\s&#'\"]+", re.I
)
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|sk-[\w-]{20,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
)
_ASSIGNED = re.compile(
    r"(?P<key>[A-Za-z_][\w.-]{0,80})(?P<between>[\"']?\s{0,2}[:=]\s{0,2})"
    r"(?P<value>\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s,;&\"'(){}\[\]]+)"
)
_NO_SECRET = re.compile(r"(?:null|none|true|false|~|[-+\d.e_]+|\[redacted\])?", re.IGNORECASE)


@functools.lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether the value of a key or of an environment variable of this name is a secret."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return False
    before = words[-2] if len(words) > 1 else ""
    if words[-1] == "token":
        return before not in _NO_TOKENS
    return words[-1] in _NOUNS or (words[-1] == "key" and before in _KEYS) or words[-2:] == ["pass", "phrase"]


def secret_values(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The values of environment variables with names of secrets, the longest first. None: of this process."""
    environment = os.environ if environment is None else environment
    found = {value for name, value in environment.items() if is_secret_name(name) or name.endswith(_ENDINGS)}
    return tuple(sorted((v for v in found if len(v) >= _LEAST and not _PLAIN.fullmatch(v)), key=len, reverse=True))


def redact(text: str) -> str:
    """`text` without secrets: values of the environment, parts of URLs, known forms, and what is assigned to the name
    of a secret in it, such as `api_key=...` or `"password": "..."`."""
    return _ASSIGNED.sub(_hide_assigned, redact_value(text))


def redact_value(text: str) -> str:
    """`text` without values of the environment, parts of URLs and known forms. What is assigned to names stays."""
    return _without(text, secret_values())


def redacted(value: Any) -> Any:
    """A JSON value without secrets: texts under the names of secrets, and secrets inside of other texts."""
    return _redacted(value, secret_values())


def secret_keys(value: Any, key: str = "") -> list[str]:
    """The dotted keys of a JSON value at which `redacted` hides something."""
    if redacted(value) == value:
        return []
    if isinstance(value, dict):
        return [at for k, inner in value.items() for at in _secret_keys_at(k, inner, f"{key}.{k}" if key else str(k))]
    return [key]


def _secret_keys_at(key: Any, value: Any, dotted: str) -> list[str]:
    if isinstance(value, dict):
        return secret_keys(value, dotted)
    return [] if redacted({key: value}) == {key: value} else [dotted]


def _without(text: str, values: tuple[str, ...]) -> str:
    for value in values:
        if value in text:
            text = text.replace(value, HIDDEN)
    if "://" in text:
        text = _IN_URL.sub(rf"\g<scheme>{HIDDEN}@", text)
        text = _PARAMETER.sub(rf"\g<name>{HIDDEN}", text)
    return _FORMS.sub(HIDDEN, text)


def _redacted(value: Any, values: tuple[str, ...]) -> Any:
    match value:
        case str():
            return _without(value, values)
        case dict():
            named = {k: _of_key(k, inner, values) for k, inner in value.items()}
            return {_without(k, values) if isinstance(k, str) else k: inner for k, inner in named.items()}
        case list() | tuple():
            return type(value)(_redacted(inner, values) for inner in value)
    return value


def _of_key(key: Any, value: Any, values: tuple[str, ...]) -> Any:
    hide = isinstance(key, str) and isinstance(value, str) and is_secret_name(key)
    return HIDDEN if hide and not _NO_SECRET.fullmatch(value) else _redacted(value, values)


def _hide_assigned(found: re.Match) -> str:
    value = found["value"]
    quote = value[0] if value[0] in "\"'" else ""
    inner = value.strip(quote) if quote else value
    if not is_secret_name(found["key"]) or _NO_SECRET.fullmatch(inner) or _is_prose(found):
        return found[0]
    return f"{found['key']}{found['between']}{quote}{HIDDEN}{quote}"


def _is_prose(found: re.Match) -> bool:
    """Whether it is of a sentence: `the next token: the`."""
    before = found.string[: found.start()]
    return (
        found["key"].lower() == "token" and found["between"][0] in ": " and before.rstrip(" ")[-1:] not in ("", *"{,\n")
    )
