"""The dialects as Jinja templates, for other programs. Templates are never executed here: a folder's template is only
compared with these, to find the dialect of its model, and copied to exports."""

import functools
import importlib.resources
import logging
import pathlib

from maverick_jax.text.chat.dialects import DIALECTS, find_dialect

FILE = "chat_template.jinja"
MAX_BYTES = 1 << 20
_log = logging.getLogger(__name__)


@functools.cache
def chat_template(dialect: str) -> str:
    """Text of `chat_template.jinja` for `dialect`. With it and our `tokenizer.json`, transformers'
    `apply_chat_template` gives the ids of `render`, unless a text holds the written form of a control token (which
    transformers turns into the token) or begins with white space that has a line break (which it tokenizes together
    with the header's).

    Raises InputError for an unknown dialect."""
    name = find_dialect(dialect).name
    folder = importlib.resources.files("maverick_jax.text.chat") / "templates"
    return "".join((folder / f"{part}.jinja").read_text("utf-8") for part in (name, "messages"))


def dialect_in(folder: str | pathlib.Path) -> str | None:
    """The dialect whose template is in `folder`; None if there is no template, or (with a warning) an unknown one."""
    if (found := _read(folder)) is None:
        return None
    if (name := _dialect_of(found)) is None:
        path, names = pathlib.Path(folder) / FILE, ", ".join(DIALECTS)
        _log.warning("ignoring %s: not the template of a known dialect; choose one of %s", path, names)
    return name


def foreign_in(folder: str | pathlib.Path) -> bytes | None:
    """The template in `folder`, if it is none of ours, to be copied; None if there is no such template, or if it is
    larger than MAX_BYTES."""
    found = _read(folder)
    return found if found is not None and len(found) <= MAX_BYTES and _dialect_of(found) is None else None


def _read(folder: str | pathlib.Path) -> bytes | None:
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _dialect_of(found: bytes) -> str | None:
    return next((name for name in DIALECTS if found == chat_template(name).encode()), None)
