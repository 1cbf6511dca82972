"""The suite with the newest of everything: `python .ci/newest.py [PYTEST_ARGUMENT ...]`, by `make newest`.

An environment of its own (`.cache/newest`) gets every dependency of the package and of its tests at its newest release,
whatever pyproject.toml admits. The suite runs there; then come the versions that differ from the lock's, and which of
them pyproject.toml does not admit. The exit code is pytest's. torch stays at the lock's version, and is there only
where its build without CUDA is to be had, as for `make test`. Recent JAX needs a recent Python: run this by it.
"""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
ENVIRONMENT = REPOSITORY / ".cache" / "newest"
PYTHON = ENVIRONMENT / "bin" / "python"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ORACLES = EXTRAS["oracles"]
TESTING = PROJECT["dependencies"] + EXTRAS["test"] + EXTRAS["docs"]


def name_of(requirement: str) -> str:
    """`Some.Name[extra]>=1` -> `some-name`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement)[0]).lower()


def unbounded(requirement: str) -> str:
    """`Some.Name[extra]>=1` -> `Some.Name[extra]`."""
    return re.split(r"[\s<>=!~;]", requirement)[0]


def locked() -> dict[str, str]:
    lines = (REPOSITORY / ".ci" / "requirements.lock").read_text().splitlines()
    return dict(re.match(r"([^=\s]+)==(\S+)", line).groups() for line in lines if "==" in line and line[0] not in " #")


def install(*words: object) -> bool:
    """Whether pip installed all of `words`."""
    options = ["--quiet", "--disable-pip-version-check", "--upgrade"]
    return subprocess.run([PYTHON, "-m", "pip", "install", *options, *words]).returncode == 0


def make_environment() -> bool:
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    torch = f"torch=={locked()['torch']}" + ("+cpu" if sys.platform == "linux" else "")
    if not install("pip", "setuptools") or not install(*map(unbounded, TESTING)):
        return False
    if install(torch):
        install(torch, *(name_of(requirement) for requirement in ORACLES if name_of(requirement) != "torch"))
    return install("--no-deps", "--no-build-isolation", "--editable", REPOSITORY)


def print_differences() -> None:
    """Run by the environment's own Python."""
    from packaging.requirements import Requirement

    ranges = {name_of(text): Requirement(text).specifier for text in TESTING + ORACLES}
    lock = locked()
    print(f"\nPython {sys.version.split()[0]}; not the lock's versions:")
    for package in sorted(importlib.metadata.distributions(), key=lambda package: name_of(package.name)):
        name, version = name_of(package.name), package.version
        if name not in lock or version.partition("+")[0] == lock[name]:
            continue
        refused = name in ranges and not ranges[name].contains(version, prereleases=True)
        print(f"  {name:26} {lock[name]:>16} -> {version:16}", f"pyproject.toml: {ranges[name]}" if refused else "")


def main() -> int:
    if sys.argv[1:] == ["--differences"]:
        print_differences()
        return 0
    if not make_environment():
        return 1
    code = subprocess.run([PYTHON, "-m", "pytest", "-n", "auto", "--dist", "loadfile", *sys.argv[1:]], cwd=REPOSITORY)
    subprocess.run([PYTHON, __file__, "--differences"], check=True)
    return code.returncode


if __name__ == "__main__":
    sys.exit(main())
