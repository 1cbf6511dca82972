"""What a launcher is asked for is checked before anything is rendered."""

import re

import pytest

from launch.clusters.job import _FORMS, OPTIONS
from maverick_jax.errors import InputError
from tests.helpers.launch_jobs import job, parsed, rendered


@pytest.mark.parametrize(
    ("words", "machines"),
    [
        ("slurm pretrain_tiny", (1, 1, None, None)),
        ("slurm pretrain_tiny --nodes 2 --processes 4", (2, 4, None, None)),
        ("slurm pretrain_maverick_h200x512", (64, 1, 8, "h200")),
        ("slurm pretrain_maverick_h200x512 --devices-per-node 4", (128, 1, 4, "h200")),
        ("slurm pretrain_maverick_h200x512 --accelerator h200:64x8", (64, 1, 8, "h200")),
        ("slurm pretrain_maverick_h200x512 --accelerator a100_80 --nodes 64", (64, 1, 8, "a100_80")),
        ("gke pretrain_maverick_v6e_16x16 --accelerator v6e:16x16", (64, 1, 4, "v6e")),
        ("gke pretrain_tiny --accelerator v5e:1x1", (1, 1, 1, "v5e")),
        ("local pretrain_tiny --processes 2", (1, 2, None, None)),
        ("local pretrain_tiny mesh.fsdp=2 --processes 2 --accelerator gpu --devices-per-node 2", (1, 2, 2, "gpu")),
    ],
)
def test_machines_follow_from_the_options_the_accelerator_and_the_mesh(words, machines):
    found = job(*words.split())
    assert (found.nodes, found.processes, found.devices_per_node, found.accelerator) == machines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("slurm pretrain_tiny run.stpes=1", "command line: run.stpes: unknown key"),
        ("slurm pretrain_maverick_h200x512 --nodes 8", "devices; this job has 64"),
        ("slurm pretrain_tiny data.batch_size=12 --accelerator h200", "is not a multiple of 8"),
        ("slurm pretrain_tiny --accelerator h100:2x4 --nodes 3", "--nodes 3: --accelerator says 2 nodes"),
        ("slurm pretrain_tiny --accelerator h100:2x4 --devices-per-node 8", "--accelerator says 4"),
        ("slurm pretrain_tiny --accelerator h201", "did you mean h20"),
        ("slurm pretrain_tiny --accelerator h201:8", "--accelerator h201:8: not a topology"),
        ("slurm pretrain_tiny --accelerator h200 --processes 3", "does not divide the 8 devices"),
        ("slurm pretrain_tiny --accelerator v5p:2x2x2", "slices are launched with `maverick launch gke`"),
        ("skypilot pretrain_tiny --accelerator v5p:2x2x2", "slices are launched with `maverick launch gke`"),
        ("gke pretrain_maverick_v5p_8x8x8", "give the shape of the slice too, such as v5p:4x4x4"),
        ("slurm pretrain_tiny --queue q", "--queue is of kubernetes jobs only"),
        ("local pretrain_tiny --nodes 2", "--nodes is of slurm and kubernetes and skypilot jobs only"),
        ("gke pretrain_tiny --restart", "maverick launch gke: --restart is of local jobs only"),
        ("local pretrain_tiny --max-restarts 3", "only with --restart"),
        ("gke pretrain_tiny --exclude node[1-2]", "Kubernetes knows no ranges"),
        ("slurm pretrain_tiny --image a:1 --venv v", "give one"),
    ],
)
def test_what_does_not_fit_is_an_error(words, said):
    with pytest.raises(InputError, match=re.escape(said)):
        rendered(*words.split())


HOSTILE = ["a b", "x;reboot", "$(id)", "`id`", 'a"b', "a'b", "a\nb", "a: b", "-x", "", "../x\n#SBATCH --uid=0"]


@pytest.mark.parametrize("option", ["partition", "account", "time", "exclude", "namespace", "queue", "claim", "image"])
def test_options_of_clusters_have_the_forms_that_clusters_accept(option):
    target = OPTIONS[option][-1] if option != "image" else "slurm"
    for value in HOSTILE:
        with pytest.raises(InputError, match=re.escape(f"--{option} {value!r}: expected {_FORMS[option].expected}")):
            rendered(target, "pretrain_tiny", f"--{option}={value}")


def test_every_option_of_the_parser_is_of_known_targets():
    options = set(vars(parsed(["slurm", "pretrain_tiny"])))
    assert options - {"target", "config", "overrides", "submit", "out", "run_dir", "max_restarts", "json"} == set(
        OPTIONS
    )


def test_a_run_directory_replaces_the_configs():
    assert job("slurm", "pretrain_tiny", "run.dir=a", "--run-dir", "/b c").arguments[1:] == (
        "run.dir=a",
        "run.dir=/b c",
    )
    assert str(job("slurm", "pretrain_tiny", "run.dir=a", "--run-dir", "/b c").run.run.directory) == "/b c"


def test_names_have_the_letters_that_every_scheduler_takes():
    assert job("slurm", "pretrain_tiny", "run.name=My_Run.v2--x" + "y" * 60).name == "my-run-v2-x" + "y" * 29


@pytest.mark.parametrize("target", ["local", "slurm", "gke", "skypilot"])
def test_a_job_whose_file_would_hold_a_secret_is_refused(target):
    token = "hf_" + "a1" * 15
    with pytest.raises(InputError, match=r"^run\.dir: looks like a secret") as error:
        rendered(target, "pretrain_tiny", f"run.dir=runs/{token}")
    assert token not in str(error.value)
