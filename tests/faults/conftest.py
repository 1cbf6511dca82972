"""What the tests of faults share: the parent of their processes, an undisturbed run, and a record of times."""

import json
import os
import pathlib

import pytest

from tests.helpers.forked import nursery
from tests.helpers.killing import finish

STEPS = 8
WORDS = (f"run.steps={STEPS}", "run.eval_every=3", "checkpoint.every=2", "checkpoint.keep=30")


@pytest.fixture(scope="session")
def parent(runs):
    with nursery(runs.environment()) as found:
        yield found


@pytest.fixture(scope="session")
def whole(runs, parent) -> pathlib.Path:
    """The run of `WORDS` that nothing happens to. Tests must not change it."""
    finish(runs, parent, runs.root / "undisturbed", *WORDS)
    return runs.root / "undisturbed"


@pytest.fixture
def took(request):
    """`took(seconds, what)`: a measured time, which the file in FAULTS_RECORD keeps. It is compared with nothing."""

    def record(seconds: float, what: str) -> None:
        if path := os.environ.get("FAULTS_RECORD"):
            with open(path, "a") as file:
                file.write(json.dumps({"test": request.node.name, "what": what, "seconds": round(seconds, 2)}) + "\n")

    return record
