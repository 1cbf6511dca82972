"""MkDocs hooks: generate the API reference from the source tree, and the contributing page from CONTRIBUTING.md."""

import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("maverick_jax", "data", "train", "launch")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append one page per folder of Python modules to the navigation."""
    api = [{_module(folder): _uri(folder)} for folder in _folders()]
    config["nav"].append({"API": api})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for folder in _folders():
        files.append(File.generated(config, _uri(folder), content=_page(folder)))
    contributing = (ROOT / "CONTRIBUTING.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "contributing.md", content=contributing))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Unescape `\\|` in the code of tables: GitHub needs the backslash there, Python-Markdown prints it."""
    code = re.compile(r"`[^`]*`")
    lines = markdown.splitlines()
    return "\n".join(
        code.sub(lambda found: found[0].replace("\\|", "|"), line) if line.startswith("|") else line for line in lines
    )


def _folders() -> list[pathlib.Path]:
    return [init.parent for package in PACKAGES for init in sorted((ROOT / package).rglob("__init__.py"))]


def _module(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _uri(folder: pathlib.Path) -> str:
    return f"reference/api/{_module(folder)}.md"


def _page(folder: pathlib.Path) -> str:
    """The page of one folder: the package's own docstring, then each module with its public members."""
    name = _module(folder)
    package = f"::: {name}\n    options: {{show_root_heading: false, show_root_toc_entry: false, members: false}}\n"
    modules = [f"::: {_module(path)}\n" for path in sorted(folder.glob("*.py")) if not path.stem.startswith("__")]
    return f"# {name}\n\n" + "\n".join([package, *modules])
