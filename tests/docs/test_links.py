"""Links of the Markdown files lead somewhere, and the documentation site builds without a warning."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/**/*.md")]
CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)


def links(text: str) -> Iterator[str]:
    """Targets of inline links, images and link definitions, outside of code."""
    for inline, definition in LINK.findall(CODE.sub("", text)):
        yield inline or definition


def anchors(text: str) -> set[str]:
    """The anchors that GitHub and MkDocs both give the headings: words in lower case, joined by single hyphens."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        found.add(re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", words)))
    return found


def broken(page: pathlib.Path, text: str) -> list[str]:
    """The relative links of `text`, which stands in `page`, whose file or heading does not exist."""
    found = []
    for link in links(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or not target.is_relative_to(ROOT):
            found.append(link)
        elif anchor and anchor not in anchors(text if target == page else target.read_text()):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_to_a_file_and_a_heading(page):
    assert broken(page, page.read_text()) == []


def test_documentation_pages_link_only_to_each_other():
    """Links from docs/ to other folders work on GitHub but not on the site."""
    docs = ROOT / "docs"
    outside = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in docs.glob("**/*.md")
        for link in links(page.read_text())
        if ":" not in link and not (page.parent / link.partition("#")[0]).resolve().is_relative_to(docs)
    ]
    assert outside == []


def test_pages_named_in_code_exist():
    folders = ("maverick_jax", "train", "data", "launch", "configs", "benchmarks", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")]
    mentions = re.compile(r"(?<![\w/.])(?:docs|benchmarks)/[\w/]+\.md")
    found = {
        (path, page) for path in files if path != pathlib.Path(__file__) for page in mentions.findall(path.read_text())
    }
    assert len(found) > 5
    assert [f"{path.relative_to(ROOT)}: {page}" for path, page in found if not (ROOT / page).exists()] == []


def test_a_broken_link_is_found():
    text = """# One `word`, two
    [here](#one-word-two) [there](README.md) [web](https://x.org/a) ![picture](docs/images/distillation_quality.png)
    [lost](docs/lost.md) [heading](README.md#lost) [own](#lost) [out](../x.md) `[code](lost)`
```
[code](lost.md)
```
[definition]: lost.txt
"""
    found = broken(ROOT / "CONTRIBUTING.md", text)
    assert found == ["docs/lost.md", "README.md#lost", "#lost", "../x.md", "lost.txt"]


def test_pages_are_in_the_navigation():
    listed = (ROOT / "docs" / "site" / "mkdocs.yml").read_text()
    pages = [str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")]
    assert [page for page in pages if f": {page}" not in listed] == []


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))), reason="needs the extra `docs`"
)
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    settings = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, "-f", str(ROOT / "docs" / "site" / "mkdocs.yml")], capture_output=True, text=True, env=settings
    )
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("*.html")}
    assert {pathlib.Path("index.html"), pathlib.Path("reference/api/maverick_jax.model.html")} <= pages
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*rel="(?:stylesheet|preload)"[^>]*//'
    )
    assert [page for page in pages if loaded.search((tmp_path / "site" / page).read_text())] == []
