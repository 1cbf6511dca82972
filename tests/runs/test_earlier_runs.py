"""Checkpoints of an earlier version of the code resume and export as they did with that version.

tests/golden/earlier contains two runs saved after step 4 of 8, their configs, and the results of that version. A config
with keys that have moved since is refused with their new names; the same config with the new keys is next to it.
"""

import json
import shutil
import tarfile

import numpy as np
import pytest

from maverick_jax.errors import InputError
from tests.helpers.golden_runs import TOLERANCE, machine, maverick
from tests.helpers.small_run import REPOSITORY, checksums, contents, losses
from train.config_files import read_config

EARLIER = REPOSITORY / "tests" / "golden" / "earlier"
EXPECTED = json.loads((EARLIER / "expected.json").read_text())
RUNS = sorted(EXPECTED["runs"])


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(EARLIER / "runs.tar.xz") as archive:
        # Python 3.11.0 to 3.11.3 has no filters, and 3.12 and newer warn without one; the archive is ours
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    for run in EXPECTED["runs"].values():
        shutil.copy(EARLIER / run["config"], folder)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_an_earlier_checkpoint_exports_the_same_bytes(earlier, name):
    maverick(earlier, ["export", f"{name}/checkpoints/4", f"{name}.export4"])
    assert contents(earlier / f"{name}.export4") == EXPECTED["runs"][name]["export"]["4"]


def test_moved_keys_are_refused_with_their_new_names():
    with pytest.raises(InputError) as error:
        read_config(str(EARLIER / "lora.yaml"))
    assert str(error.value).splitlines() == [
        f"{EARLIER / 'lora.yaml'}:8: optimizer.lora: moved to trainable.lora",
        f"{EARLIER / 'lora.yaml'}:8: optimizer.train: moved to trainable.parameters",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), [("earlier", "config.yaml"), ("earlier_lora", "lora_today.yaml")])
def test_an_earlier_checkpoint_resumes(earlier, name, config):
    expected = EXPECTED["runs"][name]
    shutil.copy(EARLIER / config, earlier)
    shutil.copytree(earlier / name, earlier / f"{name}.resumed")
    # float32, as recorded: a CPU with native products of bfloat16 would use them
    maverick(earlier, ["train", config, f"run.dir={name}.resumed", "model.compute_dtype=float32"])
    resumed = losses(earlier / f"{name}.resumed")
    if EXPECTED["machine"] == machine():
        assert resumed == expected["losses"]
        assert checksums(earlier / f"{name}.resumed", 8) == expected["checksums"]["8"]
    else:
        np.testing.assert_allclose(resumed, expected["losses"], rtol=TOLERANCE)
