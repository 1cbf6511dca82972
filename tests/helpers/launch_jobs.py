"""The rendered jobs that are kept in tests/golden/launch: their command lines, and how to write them again.

python -m tests.helpers.launch_jobs
"""

import argparse
import pathlib

from launch import arguments
from launch.clusters.job import ClusterJob, job_of
from launch.clusters.launch import TARGETS

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "launch"
CASES = {
    "local_two.sh": "local pretrain_tiny --processes 2 --restart",
    "slurm_cpu.sbatch": "slurm pretrain_tiny run.steps=50 --processes 2",
    "slurm_h200.sbatch": "slurm pretrain_maverick_h200x512 --partition gpu --account lab --time 24:00:00 "
    "--image registry.example/maverick:1 --run-dir /shared/run --max-restarts 10",
    "slurm_venv.sbatch": "slurm pretrain_tiny mesh.fsdp=8 --accelerator h100:2x4 --processes 4 --venv /opt/venv "
    "--exclude node[3-4],node7",
    "kubernetes_h200.yaml": "kubernetes pretrain_maverick_h200x512 --namespace training --queue lab --exclude bad-node",
    "gke_h200.yaml": "gke sft_maverick_lora_h200x8 --image registry.example/maverick:1 --claim disk",
    "gke_v5p.yaml": "gke pretrain_maverick_v5p_8x8x8 --accelerator v5p:8x8x8",
    "gke_two_slices.yaml": "gke pretrain_tiny data.batch_size=16 --accelerator 2*v6e:2x4",
    "skypilot_h200.yaml": "skypilot pretrain_maverick_h200x512",
    "skypilot_cpu.yaml": "skypilot pretrain_tiny --nodes 2 --image registry.example/maverick:1",
}
"""File -> the words after `maverick launch`."""


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    arguments.launch(parser)
    parser.add_argument("--json", action="store_true")
    return parser.parse_intermixed_args(words)


def job(*words: object) -> ClusterJob:
    """The job that `maverick launch WORDS` asks for."""
    return job_of(parsed([str(word) for word in words]))


def rendered(*words: object) -> str:
    found = job(*words)
    return TARGETS[found.target].render(found)


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name, words in CASES.items():
        (GOLDEN / name).write_text(rendered(*words.split()))


if __name__ == "__main__":
    main()
