"""The Dockerfile: its stages can be built, what they copy is there, and what is shipped includes it."""

import re
import shutil
import subprocess
import tomllib

import pytest

from tests.helpers.small_run import REPOSITORY

PATH = REPOSITORY / "launch" / "clusters" / "Dockerfile"
INSTRUCTIONS = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of every line that is no comment, with continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", PATH.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Stage -> (what it begins with, its instructions)."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = (base, [])
        elif name:
            found[name][1].append((word, rest))
    return found


def test_every_instruction_is_known_and_every_stage_begins_with_an_earlier_one():
    assert {word for word, _ in instructions()} <= INSTRUCTIONS
    found, earlier = stages(), {"${PLATFORM}"}
    for name, (base, _) in found.items():
        assert base in earlier or re.fullmatch(r"python:\$\{PYTHON\}-slim", base), name
        earlier.add(name)
    assert {"base", "cpu", "cuda", "tpu"} <= found.keys() and list(found)[-1] == "image"
    assert found["image"][0] == "${PLATFORM}"  # the build argument names the stage


def test_arguments_of_from_have_defaults_before_the_first_stage():
    before = [rest for word, rest in instructions()[: [w for w, _ in instructions()].index("FROM")] if word == "ARG"]
    defaults = dict(rest.split("=") for rest in before)
    assert defaults["PLATFORM"] == "cpu"
    version = tuple(map(int, defaults["PYTHON"].split(".")))
    assert version >= tuple(map(int, PROJECT["project"]["requires-python"].removeprefix(">=").split(".")))


def test_what_is_copied_exists_and_is_the_whole_package():
    copied = [word for word, rest in stages()["base"][1] if word == "COPY" for word in rest.split()[:-1]]
    assert [name for name in copied if not (REPOSITORY / name).exists()] == []
    packages = {name for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] if "." not in name}
    assert packages <= set(copied)


def test_each_variant_installs_its_extra_with_the_versions_of_the_locks():
    extras = PROJECT["project"]["optional-dependencies"]
    for name, extra in (("cpu", ""), ("cuda", "[gpu]"), ("tpu", "[tpu]")):
        ((_, command),) = stages()[name][1]
        assert command.strip().endswith(f'".{extra}"' if extra else " .")
        assert "--constraint .ci/requirements.lock" in command
        assert not extra or (extra[1:-1] in extras and "--constraint .ci/compilers.lock" in command)


def test_the_image_runs_as_a_user_without_rights():
    image = dict(stages()["image"][1])
    assert image["USER"] == "maverick" and image["ENTRYPOINT"] == '["maverick"]'
    text = PATH.read_text()
    assert not re.search(r"\bADD\b|sudo|curl|wget|chmod 777|PASSWORD|TOKEN", text)


def test_the_version_in_the_example_is_the_packages():
    assert f"maverick-jax:{PROJECT['project']['version']}-cuda" in PATH.read_text()


def test_templates_and_the_environment_file_are_shipped():
    assert PROJECT["tool"]["setuptools"]["package-data"]["launch.clusters"] == ["Dockerfile", "*.yaml", "templates/*"]


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_has_no_remarks():
    done = subprocess.run(["hadolint", PATH], capture_output=True, text=True)
    assert done.stdout == ""
