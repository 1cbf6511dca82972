"""The dialects as Jinja templates, for programs that render those. Ours never do: a template in a folder is compared
with these, to know which dialect a model speaks, and otherwise left alone."""

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
    """Text for `chat_template.jinja`. transformers' `apply_chat_template` with it and our `tokenizer.json` gives the
    ids that `render` gives, where no text holds a control token's written form (that program makes tokens of those)
    and none begins with white space that has a line break in it (it tokenises that with the header's).

    Raises InputError for a dialect that there is not."""
    name = find_dialect(dialect).name
    folder = importlib.resources.files("maverick_jax.text.chat") / "templates"
    return "".join((folder / f"{part}.jinja").read_text("utf-8") for part in (name, "messages"))


def dialect_in(folder: str | pathlib.Path) -> str | None:
    """The dialect whose template the folder holds; None where it holds none, or, with a log line, another one."""
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        return None
    with path.open("rb") as file:
        found = file.read(MAX_BYTES + 1)
    for name in DIALECTS:
        if found == chat_template(name).encode():
            return name
    _log.warning("%s is not one of our templates and is not used: choose a dialect (%s)", path, ", ".join(DIALECTS))
    return None
