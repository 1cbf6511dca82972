"""Rendered jobs against the schemas of Kubernetes and SkyPilot, which come with packages of an environment of its own.

`make launchers` installs them; without it these tests are skipped.
"""

import subprocess

import pytest
import yaml

from tests.helpers.launch_jobs import CASES, GOLDEN
from tests.helpers.small_run import REPOSITORY

PYTHON = REPOSITORY / ".cache" / "launchers" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs SkyPilot and Kubernetes' schemas: `make launchers`"),
]

KUBERNETES = """
import sys, yaml, kubernetes_validate
for found in yaml.safe_load_all(sys.stdin):
    kubernetes_validate.validate(found, sys.argv[1], strict=True)
"""
SKYPILOT = """
import sys
from sky import Task
task = Task.from_yaml(sys.argv[1])
(found,) = task.resources
print(task.name, task.num_nodes, found.accelerators, found.job_recovery)
"""


def check(code: str, *words: str, text: str = "", **more: str) -> subprocess.CompletedProcess:
    return subprocess.run([PYTHON, "-c", code, *words], input=text, capture_output=True, text=True, **more)


def manifests(name: str) -> list[dict]:
    """The manifests of Kubernetes' own kinds, with the template of a JobSet as a Job."""
    found = []
    for manifest in yaml.safe_load_all((GOLDEN / name).read_text()):
        if manifest and manifest["kind"] != "JobSet":
            found.append(manifest)
        elif manifest:
            (group,) = manifest["spec"]["replicatedJobs"]
            found.append({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **group["template"]})
    return found


@pytest.mark.parametrize("version", ["1.29", "1.32", "1.36"])
@pytest.mark.parametrize("name", [name for name, words in CASES.items() if words.startswith(("kubernetes", "gke"))])
def test_manifests_have_the_fields_of_kubernetes(name, version):
    found = manifests(name)
    assert {"Job", "NetworkPolicy"} <= {manifest["kind"] for manifest in found}
    done = check(KUBERNETES, version, text=yaml.safe_dump_all(found))
    assert done.returncode == 0, done.stderr
    found[-1]["spec"]["template"]["spec"]["containers"][0]["imagge"] = "x"
    assert "imagge" in check(KUBERNETES, version, text=yaml.safe_dump_all(found)).stderr


@pytest.mark.parametrize(
    ("name", "said"), [("skypilot_h200.yaml", "64 {'H200': 8}"), ("skypilot_cpu.yaml", "pretrain-tiny 2 None")]
)
def test_skypilot_reads_its_task_file(name, said, tmp_path):
    done = check(SKYPILOT, str(GOLDEN / name), cwd=tmp_path)
    assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
    assert "'recover_on_exit_codes': [75, 76, 77]" in done.stdout
    bad = (GOLDEN / name).read_text().replace("num_nodes", "num_node")
    (tmp_path / "bad.yaml").write_text(bad)
    assert "num_node" in check(SKYPILOT, str(tmp_path / "bad.yaml"), cwd=tmp_path).stderr
