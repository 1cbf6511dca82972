"""Jobs for SLURM: one batch file, which requeues itself by exit code."""

from launch.clusters import exit_codes
from launch.clusters.environment import exports
from launch.clusters.job import ClusterJob
from launch.clusters.rendering import comment, fill, shell, template

SUFFIX = ".sbatch"
SUBMIT = ("sbatch",)
BUG_IN_SRUN = 101


def render(job: ClusterJob) -> str:
    """The batch file of a job."""
    bar = lambda codes: " | ".join(str(code) for code in codes)
    excluded = job.options.get("exclude")
    return fill(
        template("slurm.sbatch"),
        name=job.name,
        machines=_machines(job),
        made_by=comment(f"Made by: {job.command()}"),
        nodes=str(job.nodes),
        processes=str(job.processes),
        directives="\n".join(f"#SBATCH {line}" for line in _directives(job)),
        max_restarts=str(job.max_restarts),
        run_dir=shell([job.run.run.directory]),
        arguments=shell(job.arguments),
        environment=exports(job.platform),
        task_setup=_task_setup(job),
        run=_program(job),
        container=_container(job),
        killed=bar(128 + number for number in exit_codes.SIGNALS),
        peer_failed=str(exit_codes.PeerFailed.exit_code),
        bug=str(exit_codes.BUG),
        bug_in_srun=str(BUG_IN_SRUN),
        restart=bar(exit_codes.RESTART),
        suspected=str(exit_codes.SUSPECTED_HARDWARE),
        excluded=f"{excluded}," if excluded else "",
    )


def _machines(job: ClusterJob) -> str:
    kind = {None: "CPUs", "gpu": "GPUs"}.get(job.accelerator, job.accelerator)
    devices = f", {job.devices_per_node} {kind} each" if job.devices_per_node else f" ({kind})"
    return f"{job.nodes} node{'s' if job.nodes > 1 else ''}{devices}"


def _directives(job: ClusterJob) -> list[str]:
    lines = ["--exclusive"]
    if job.devices_per_node and job.platform == "cuda":
        lines.append(f"--gpus-per-node={job.devices_per_node}")
    return lines + [
        f"--{name}={job.options[name]}" for name in ("partition", "account", "time", "exclude") if name in job.options
    ]


def _task_setup(job: ClusterJob) -> str:
    lines = []
    if venv := job.options.get("venv"):
        lines.append(f"source {_quoted_inside(f'{venv}/bin/activate')} || exit 78")
    if job.platform == "cuda" and job.devices_per_node and job.processes > 1:
        each = job.devices_per_node // job.processes
        lines += [
            f"first=$((SLURM_LOCALID * {each})) # GPUs of this process",
            f'CUDA_VISIBLE_DEVICES=$(seq -s, "$first" "$((first + {each - 1}))")',
            "export CUDA_VISIBLE_DEVICES",
        ]
    return "\n".join(lines)


def _program(job: ClusterJob) -> str:
    """`maverick`, or the container that holds it."""
    image = job.options.get("image", "")
    if not image.endswith(".sif"):
        return "maverick"
    nv = "--nv " if job.platform == "cuda" else ""
    return f'apptainer exec {nv}--bind "$PWD" --pwd "$PWD" {_quoted_inside(image)} maverick'


def _container(job: ClusterJob) -> str:
    """srun's options for an image of a registry or a squashfs file, which Pyxis starts."""
    image = job.options.get("image", "")
    if not image or image.endswith(".sif"):
        return ""
    return f'--container-image={shell([image])} --container-mounts="$PWD:$PWD" --container-workdir="$PWD" '


def _quoted_inside(word: str) -> str:
    """A word quoted for a shell script that itself stands in single quotes."""
    return shell([word]).replace("'", "'\\''")
