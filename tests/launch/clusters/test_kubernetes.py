"""Manifests have the fields that Kubernetes and JobSet declare, and say what the job needs."""

import copy
import os
import re
import subprocess

import jsonschema
import pytest
import yaml

from launch.clusters import exit_codes
from maverick_jax.errors import InputError
from tests.helpers.jobset_fields import JOBSET
from tests.helpers.launch_jobs import CASES, rendered
from train.config_files import read_config

MANIFESTS = [name for name, words in CASES.items() if words.startswith(("kubernetes", "gke"))]


def documents(*words: object) -> dict[str, dict]:
    """The manifests by kind."""
    return {found["kind"]: found for found in yaml.safe_load_all(rendered(*words)) if found}


def pod(found: dict[str, dict]) -> dict:
    return job_spec(found)["template"]["spec"]


def job_spec(found: dict[str, dict]) -> dict:
    (group,) = found["JobSet"]["spec"]["replicatedJobs"]
    return group["template"]["spec"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_jobset_has_declared_fields_only(name):
    jobset = documents(*CASES[name].split())["JobSet"]
    jsonschema.validate(jobset, JOBSET)
    for change in (
        {"failurePolicy": {"maxRestart": 1}},
        {"failurePolicy": {"rules": [{"action": "Fail", "name": "a"}]}},
    ):
        bad = copy.deepcopy(jobset)
        bad["spec"] |= change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, JOBSET)


def test_the_hosts_of_a_tpu_slice():
    found = documents(*CASES["gke_v5p.yaml"].split())
    spec, (container,) = job_spec(found), pod(found)["containers"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (128, 128, "Indexed")
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod(found)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "8x8x8",
    }
    assert found["JobSet"]["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }


def test_several_slices_are_several_jobs():
    found = documents(*CASES["gke_two_slices.yaml"].split())
    (group,) = found["JobSet"]["spec"]["replicatedJobs"]
    assert (group["replicas"], job_spec(found)["parallelism"]) == (2, 2)
    (container,) = pod(found)["containers"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (values["MAVERICK_NUM_PROCESSES"], values["HOSTS"]) == ("4", "2")


def test_selectors_are_gkes_only_where_asked_for():
    plain, gke = documents(*CASES["kubernetes_h200.yaml"].split()), documents(*CASES["gke_h200.yaml"].split())
    assert "nodeSelector" not in pod(plain)
    assert pod(gke)["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h200-141gb"}
    for found in (plain, gke):
        assert pod(found)["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 8}}
        assert pod(found)["tolerations"][0]["key"] == "nvidia.com/gpu"
    with pytest.raises(InputError, match="does not say which GPU"):
        rendered("gke", "pretrain_tiny", "--accelerator", "gpu")


def test_options_of_the_cluster():
    found = documents(*CASES["kubernetes_h200.yaml"].split())
    assert {manifest["metadata"]["namespace"] for manifest in found.values()} == {"training"}
    assert found["JobSet"]["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "lab"}
    (term,) = pod(found)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchExpressions"] == [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["bad-node"]}]


@pytest.mark.parametrize("code", [*exit_codes.RESTART, *exit_codes.NEVER, 80, 127, 134, 137, 143])
def test_exit_codes_lead_to_restarts_or_to_the_end(code):
    """A code in `values` is no reason to fail the Job for good; the JobSet then makes all pods anew."""
    found = documents("kubernetes", "pretrain_tiny", "--max-restarts", 7)
    (rule,) = job_spec(found)["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    values = rule["onExitCodes"]["values"]
    assert values == sorted(values)
    assert (code in values) == (exit_codes.process_code(code) in exit_codes.RESTART)
    policy = found["JobSet"]["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]
    assert (job_spec(found)["backoffLimit"], pod(found)["restartPolicy"]) == (0, "Never")


@pytest.mark.parametrize(("index", "job_index", "number"), [(0, 0, 0), (1, 0, 1), (0, 1, 2), (1, 1, 3)])
def test_processes_are_numbered_over_slices(index, job_index, number, tmp_path):
    found = documents(*CASES["gke_two_slices.yaml"].split())
    (container,) = pod(found)["containers"]
    (tmp_path / "maverick").write_text('#!/bin/sh\necho "$MAVERICK_PROCESS_ID" "$@"\n')
    (tmp_path / "maverick").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_INDEX": str(job_index), "JOB_COMPLETION_INDEX": str(index)}
    done = subprocess.run([*container["command"], "a b"], env=env | {"HOSTS": "2"}, capture_output=True, text=True)
    assert done.stdout == f"{number} train a b\n", done.stderr


def test_the_coordinator_is_reached_by_pods_of_the_job_only():
    found = documents("kubernetes", "pretrain_tiny", "--nodes", 2)
    (container,) = pod(found)["containers"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values["MAVERICK_COORDINATOR"] == "pretrain-tiny-hosts-0-0.pretrain-tiny:8476"
    policy = found["NetworkPolicy"]["spec"]
    selector = {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": "pretrain-tiny"}}
    assert policy == {
        "podSelector": selector,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": selector}]}],
    }
    assert pod(found)["automountServiceAccountToken"] is False


def test_a_config_of_ones_own_travels_with_the_job(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("base: pretrain_tiny\nrun: {name: own, steps: 7}\noptimizer: {learning_rate: 1e-3}\n")
    found = documents("kubernetes", own, "data.seed=3")
    (container,) = pod(found)["containers"]
    assert container["args"] == ["/etc/maverick/config.yaml"]
    (tmp_path / "config.yaml").write_text(found["ConfigMap"]["data"]["config.yaml"])
    expected = read_config(str(own), ["data.seed=3", "run.dir=/runs/own"])
    assert read_config(str(tmp_path / "config.yaml")) == expected
    assert pod(found)["volumes"][-1] == {"name": "config", "configMap": {"name": "own"}}


@pytest.mark.parametrize(
    ("given", "directory"), [(None, "/runs/pretrain_tiny"), ("x/y", "/runs/x/y"), ("/runs/a b", "/runs/a b")]
)
def test_the_run_is_on_the_volume(given, directory):
    words = [] if given is None else ["--run-dir", given]
    (container,) = pod(documents("kubernetes", "pretrain_tiny", *words))["containers"]
    assert container["args"][-1] == f"run.dir={directory}"


@pytest.mark.parametrize("given", ["/data/run", "../run", "/runs/../etc"])
def test_a_run_that_a_restart_would_lose_is_refused(given):
    with pytest.raises(InputError, match=re.escape("is not on the volume, which pods have at /runs")):
        rendered("kubernetes", "pretrain_tiny", "--run-dir", given)


@pytest.mark.parametrize(
    "value", ["it's", 'a"b', "$(HOSTS)", "a\nb: c", "{{x}}", "<<name>>", "- x", "é", "\\", "$$(x)"]
)
def test_hostile_values_reach_the_program_as_they_are(value):
    """Kubernetes replaces `$(NAME)`, and reads two dollars as one."""
    (container,) = pod(documents("kubernetes", "pretrain_tiny", "--run-dir", f"/runs/{value}"))["containers"]
    assert len(container["args"]) == 2 and "$(" not in container["args"][1].replace("$$", "")
    word = container["args"][1].replace("$$", "$")
    assert str(read_config("pretrain_tiny", [word]).run.directory) == f"/runs/{value}"
