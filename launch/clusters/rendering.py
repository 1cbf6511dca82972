"""Filling in templates: files that read like the job they become, with `<<name>>` where values go.

Values reach a shell or YAML only through `shell` and `scalar`, which quote them.
"""

import json
import re
import shlex
from collections.abc import Iterable
from importlib.resources import files

_PLACE = re.compile(r"<<([a-z_]+)>>")
_ALONE = re.compile(r"^([ \t]*)<<([a-z_]+)>>[ \t]*\n", re.MULTILINE)


def template(name: str) -> str:
    """The text of a shipped template."""
    return (files("launch.clusters") / "templates" / name).read_text("utf-8")


def fill(text: str, **values: str) -> str:
    """`text` with each `<<name>>` replaced by `values[name]`. A place alone on its line takes any number of lines, each
    indented as the place is, and an empty value removes the line. Raises KeyError for a name without a value, and
    ValueError for a value without a place. Values are not searched for places."""
    if unused := values.keys() - set(_PLACE.findall(text)):
        raise ValueError(f"the template has no place for {', '.join(sorted(unused))}")
    parts = []
    end = 0
    for line in _ALONE.finditer(text):
        lines = values[line[2]].removesuffix("\n").split("\n") if values[line[2]] else []
        block = "".join(f"{line[1]}{one}\n" if one else "\n" for one in lines)
        parts += [_PLACE.sub(lambda found: values[found[1]], text[end : line.start()]), block]
        end = line.end()
    return "".join([*parts, _PLACE.sub(lambda found: values[found[1]], text[end:])])


def shell(words: Iterable[object]) -> str:
    """Words as bash reads them back, in one line without control characters."""
    return " ".join(shlex.quote(word) if word.isprintable() else _escaped(word) for word in map(str, words))


def _escaped(word: str) -> str:
    """A word in bash's quotes with escapes."""
    one = lambda c: "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", "surrogateescape"))
    return "$'" + "".join(f"\\{c}" if c in "\\'" else c if c.isprintable() else one(c) for c in word) + "'"


def scalar(value: object) -> str:
    """A string, number, list or mapping as YAML in one line (JSON is YAML)."""
    return json.dumps(value)


def comment(text: str, width: int = 110) -> str:
    """`text` as comment lines; line breaks and control characters in it cannot end the comment."""
    words = " ".join(text.split()).split(" ")
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    printable = lambda line: "".join(c if c.isprintable() else "?" for c in line)
    return "\n".join(f"# {printable(line)}" for line in lines)
