"""Parts of a report's HTML. All text is escaped."""

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from launch.report.run_record import TextFile
from launch.report.wall_time import class_rows, shares
from train.goodput.ledger import Goodput


def escape(text: Any) -> str:
    return html.escape(str(text))


def pages_bytes(page: str) -> bytes:
    """The file of a page. A JSON string may hold a surrogate, which UTF-8 cannot encode."""
    return page.encode("utf-8", errors="xmlcharrefreplace")


def section(title: str, content: str) -> list[str]:
    """A heading and the content; nothing if there is no content."""
    return [f"<h2>{title}</h2>", content] if content else []


def table(rows: Sequence[Iterable[str]], *, header: bool = False) -> str:
    """A table of text; with `header`, its first row names the columns. Empty without rows."""
    if not rows:
        return ""
    line = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
    lines = [line(row, "th" if header and not i else "td") for i, row in enumerate(rows)]
    kind = ' class="ruled"' if header else ""
    return f'<div class="wide"><table{kind}>{"".join(lines)}</table></div>'


def time_bar(found: Goodput) -> str:
    """The classes of wall time as a bar, and a table of them with the bar's colors."""
    bars = (f'<span style="width:{part:.3%};background:var(--{name})"></span>' for name, part in shares(found))
    colors = (f'<i style="background:var(--{name})"></i>' for name, _ in shares(found))
    rows = "".join(
        f"<tr><td>{color}{escape(name)}</td><td>{escape(part)}</td><td>{escape(length)}</td>"
        f"<td>{escape(about)}</td></tr>"
        for color, (name, about, part, length) in zip(colors, class_rows(found), strict=True)
    )
    return f'<div class="bar">{"".join(bars)}</div><div class="wide"><table>{rows}</table></div>'


def by_width(broad: str, narrow: str | None) -> str:
    """A figure, and in its place a narrow one on a phone, where the text of the broad one would be too small."""
    return f'<div class="broad">{broad}</div><div class="narrow">{narrow}</div>' if narrow else broad


def json_of(text: TextFile) -> Any:
    """What a JSON file holds; None if it cannot be parsed."""
    try:
        found = json.loads(text.content or "null")
        json.dumps(found)  # check that it is not nested too deeply
        return found
    except (ValueError, RecursionError):
        return None
