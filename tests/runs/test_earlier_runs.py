"""Checkpoints that an earlier layout of this code wrote: they resume, and export, as they did there.

tests/golden/earlier holds two runs saved after step 4 of 8, their configs, and what the same code made of them later.
"""

import json
import shutil
import tarfile

import numpy as np
import pytest

from tests.helpers.golden_runs import TOLERANCE, machine, maverick
from tests.helpers.small_run import REPOSITORY, checksums, contents, losses

EARLIER = REPOSITORY / "tests" / "golden" / "earlier"
EXPECTED = json.loads((EARLIER / "expected.json").read_text())
RUNS = sorted(EXPECTED["runs"])


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(EARLIER / "runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for run in EXPECTED["runs"].values():
        shutil.copy(EARLIER / run["config"], folder)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_an_earlier_checkpoint_exports_the_same_bytes(earlier, name):
    maverick(earlier, ["export", f"{name}/checkpoints/4", f"{name}.export4"])
    assert contents(earlier / f"{name}.export4") == EXPECTED["runs"][name]["export"]["4"]


@pytest.mark.parametrize("name", RUNS)
def test_an_earlier_checkpoint_resumes(earlier, name):
    expected = EXPECTED["runs"][name]
    shutil.copytree(earlier / name, earlier / f"{name}.resumed")
    maverick(earlier, ["train", expected["config"], f"run.dir={name}.resumed"])
    resumed = losses(earlier / f"{name}.resumed")
    if EXPECTED["machine"] == machine():
        assert resumed == expected["losses"]
        assert checksums(earlier / f"{name}.resumed", 8) == expected["checksums"]["8"]
    else:
        np.testing.assert_allclose(resumed, expected["losses"], rtol=TOLERANCE)
