"""Jobs for SkyPilot: a task file for its managed jobs, which find machines, and recover from their loss."""

from launch.clusters import exit_codes
from launch.clusters.environment import flags_of, reasons, variables
from launch.clusters.job import ANY_GPU, ClusterJob
from launch.clusters.kubernetes import MOUNT, with_run_dir
from launch.clusters.rendering import comment, fill, scalar, shell, template
from maverick_jax.errors import InputError

SUFFIX = ".yaml"
SUBMIT = ("sky", "jobs", "launch", "--yes")
NAMES = {
    "a100_40": "A100",
    "a100_80": "A100-80GB",
    "h100": "H100",
    "h200": "H200",
    "b200": "B200",
}
"""SkyPilot's names of accelerators."""
CONFIG, END = "maverick-config.yaml", "END_OF_CONFIG"


def render(job: ClusterJob) -> str:
    """The task file of a job."""
    if job.accelerator == ANY_GPU:
        raise InputError(f"maverick launch skypilot: --accelerator {ANY_GPU} does not say which GPU; expected one of "
                         f"{', '.join(NAMES)}")  # fmt: skip
    job = with_run_dir(job)
    image = job.options.get("image")
    kind = NAMES[job.accelerator] if job.accelerator else None
    codes = "; ".join(f"{code}, {exit_codes.reason(code)}" for code in exit_codes.RESTART)
    extra = "[gpu]" if job.platform == "cuda" else ""
    return fill(
        template("skypilot.yaml"),
        name=job.name,
        machines=f"{job.nodes} node{'s' if job.nodes > 1 else ''}"
        + (f", {job.devices_per_node} {kind} each" if kind else ""),
        made_by=comment(f"Made by: {job.command()}"),
        nodes=str(job.nodes),
        accelerators=f"accelerators: {kind}:{job.devices_per_node}" if kind else "cpus: 4+",
        image=f"image_id: {scalar(f'docker:{image}')}" if image else "",
        recovery=comment(
            f"A lost machine always leads to a recovery. These exit codes do too: {codes}. No other one does."
        ),
        restart=scalar(list(exit_codes.RESTART)),
        mount=MOUNT,
        envs=_envs(job),
        setup="" if image else f"setup: |\n  pip install {shell([f'.{extra}'])}",
        config=_config(job),
        arguments=shell(job.arguments if job.is_shipped else [CONFIG]),
        killed=" | ".join(str(128 + number) for number in exit_codes.SIGNALS),
        peer_failed=str(exit_codes.PeerFailed.exit_code),
    )


def _envs(job: ClusterJob) -> str:
    if not flags_of(job.platform):
        return ""
    entries = [f"  {name}: {scalar(value)}" for name, value in variables(job.platform).items()]
    return "\n".join(["", "envs:", *(f"  {line}" for line in reasons(job.platform).splitlines()), *entries])


def _config(job: ClusterJob) -> str:
    """Lines that write the config, for machines that do not have the file."""
    if job.is_shipped:
        return ""
    said = "# The config with every default, as `maverick config show` prints it."
    return f"{said}\ncat > {CONFIG} <<'{END}'\n{job.config_text}{END}"
