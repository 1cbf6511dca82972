"""The examples of the guides are run as a reader would: files are written, then commands are typed, in one folder.

A fenced block with a title is a file; a block of `sh` is commands. `pip install .` installs the page's package into a
folder of the test, where Python finds it and its entry point.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.helpers.small_run import REPOSITORY

GUIDES = REPOSITORY / "docs" / "guides"
MORE = ("instruction_tuning", "library")
"""Pages with examples besides those on how to add something."""
PAGES = sorted(path.stem for path in [*GUIDES.glob("add_a*.md"), *(GUIDES / f"{page}.md" for page in MORE)])
QUICK = ("add_a_parameter", "add_a_source", "add_an_environment")
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
EXPECTED = {
    "add_a_parameter": ["periods/layer_0/attention/scale"],
    "add_a_source": ["Dear shop", "mail: step 2"],
    "add_a_task": ["backwards", "CC0-1.0"],
    "add_an_environment": ["success=True"],
    "add_an_objective": ["gamma: 2.0", "focal: step 4", "report.html"],
    "add_an_optimizer": ["lion: step 4"],
    "instruction_tuning": [
        "data.tokenizer: llama4, the tokenizer of",
        "museum: step 60",
        "PEFT adapter of 16",
        "step 10",
    ],
    "library": ["nats", "(1, 4, 512)"],
}


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, title or "", content) of each fenced block."""
    return BLOCK.findall((GUIDES / f"{page}.md").read_text())


def commands(page: str) -> list[str]:
    return [line for language, _, content in blocks(page) if language == "sh" for line in content.splitlines()]


def spelled_for_tests(command: str) -> str:
    """The command with this Python, and with what `pip install .` needs where nothing can be downloaded."""
    offline = "install --quiet --no-deps --no-build-isolation --disable-pip-version-check --target installed"
    command = re.sub(r"^pip install", f"{sys.executable} -m pip {offline}", command)
    command = re.sub(r"(^|\| )maverick\b", rf"\g<1>{sys.executable} -m launch.cli", command)
    return re.sub(r"(^|\s)python ", rf"\g<1>{sys.executable} ", command)


def run_page(page: str, folder: pathlib.Path) -> str:
    """Everything that the page's commands print. A command that fails is an AssertionError."""
    for _, title, content in blocks(page):
        if title:
            path = folder / title
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAVERICK", "JAX"))}
    paths = [REPOSITORY, folder / "installed"] + ([] if (folder / "pyproject.toml").exists() else [folder])
    more = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "MAVERICK_CACHE": str(folder / "cache"),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".cache" / "jax-runs"),
    }
    printed = []
    for command in commands(page):
        done = subprocess.run(
            ["bash", "-c", spelled_for_tests(command)], cwd=folder, env=kept | more, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout + done.stderr)
    return "".join(printed)


@pytest.mark.parametrize("page", [pytest.param(p, marks=[] if p in QUICK else [pytest.mark.slow]) for p in PAGES])
def test_the_example_of_a_guide_runs(page, tmp_path):
    printed = run_page(page, tmp_path)
    assert [text for text in EXPECTED[page] if text not in printed] == [], printed


def test_every_guide_has_commands_and_files():
    assert set(EXPECTED) == set(PAGES)
    assert all(commands(page) and any(title for _, title, _ in blocks(page)) for page in PAGES)


def test_a_plugin_that_cannot_be_imported_is_one_error(tmp_path, capsys):
    from launch.cli import main

    (tmp_path / "mine.yaml").write_text("base: pretrain_tiny\nplugins: [no_such_package.objectives]\n")
    assert main(["config", "show", str(tmp_path / "mine.yaml")]) == 78
    said = capsys.readouterr().err
    assert "mine.yaml:2: plugins: cannot import no_such_package.objectives" in said
    assert "install the package no_such_package, or put the folder that holds it on PYTHONPATH" in said
    (tmp_path / "mine.yaml").write_text("base: pretrain_tiny\nplugins: ['os; x']\n")
    assert main(["config", "show", str(tmp_path / "mine.yaml")]) == 78
    assert "'os; x' is not a module name" in capsys.readouterr().err
