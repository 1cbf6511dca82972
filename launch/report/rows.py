"""`maverick data inspect --html FILE`: rows of the data as one self-contained HTML file without scripts, with
thumbnails of their pictures. The texts come from data, which is not trusted: they are escaped."""

import pathlib
from typing import Any

from launch.report.html_parts import escape, pages_bytes
from maverick_jax.files import write_atomically

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Rows</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
.row {{ white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #8886; border-radius: 6px; padding: .8rem; }}
.learned {{ background: #2a72; border-radius: 3px; }}
.segment {{ border-top: 2px dashed #8888; margin: .6rem 0; }}
figure {{ display: inline-block; margin: .4rem .6rem .4rem 0; vertical-align: top; max-width: 12rem; }}
figure img {{ max-width: 160px; display: block; border: 1px solid #8886; }}
figcaption {{ font-size: 12px; opacity: .8; white-space: normal; }}
</style></head><body>
<h1>Rows</h1>
<p><span class="learned">Text on this background</span> is learned. A dashed line begins a segment.</p>
{body}
</body></html>
"""


def write_rows(found: dict[str, Any], path: str | pathlib.Path) -> pathlib.Path:
    """Writes the result of `data.commands.inspect` with thumbnails; returns the path."""
    path = pathlib.Path(path)
    write_atomically(path, pages_bytes(PAGE.format(body="\n".join(map(_row, found["rows"])))))
    return path


def _row(row: dict[str, Any]) -> str:
    pictures = row.get("pictures", [])
    head = (f"row {row['row']} of {row['source']}, epoch {row['epoch']}: {row['tokens']} of {row['length']} tokens, "
            f"{row['trained']:g} learned, {len(pictures)} pictures, "
            f"{sum(picture['tiles'] for picture in pictures)} tiles")  # fmt: skip
    parts, segment = [], None
    for run in row["runs"]:
        if segment not in (None, run["segment"]):
            parts.append('<div class="segment"></div>')
        segment = run["segment"]
        if "picture" in run:
            parts.append(_figure(pictures[run["picture"]], run["text"]))
        else:
            text = escape(run["text"])
            parts.append(f'<span class="learned">{text}</span>' if run["loss_weight"] else text)
    return f'<h2>{escape(head)}</h2><div class="row">{"".join(parts)}</div>'


def _figure(picture: dict[str, Any], said: str) -> str:
    caption = escape(f"{said[1:-1]}, at place {picture['place']}, SHA-256 {picture['sha256']}...")
    return (
        f'<figure><img src="{escape(picture["thumbnail"])}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )
