"""Jobs for Kubernetes: a JobSet for GPU node pools or TPU slices, with the network policy and config that it needs."""

import dataclasses
from importlib.metadata import version

from launch.clusters import exit_codes
from launch.clusters.environment import flags_of, reasons, variables
from launch.clusters.job import ClusterJob, in_directory
from launch.clusters.rendering import comment, fill, scalar, template
from maverick_jax.accounting import topologies
from maverick_jax.errors import InputError

SUFFIX = ".yaml"
SUBMIT = ("kubectl", "apply", "-f")
MOUNT = "/runs"
PORT = 8476
GROUP = "hosts"
"""Name of the replicated job, whose pods are the hosts of the run."""
GKE_GPUS = {
    "a100_40": "nvidia-tesla-a100",
    "a100_80": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}
"""Values of GKE's node label `cloud.google.com/gke-accelerator`."""
GKE_TPUS = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
"""Values of GKE's node label `cloud.google.com/gke-tpu-accelerator`."""


def render(job: ClusterJob) -> str:
    """The manifests of a job, as one YAML file."""
    if job.processes != 1:
        raise InputError("--processes: a pod runs one process")
    job = with_run_dir(job)
    hosts = job.nodes // job.slices
    arguments = job.arguments if job.is_shipped else ("/etc/maverick/config.yaml",)
    ends = [exit_codes.SUSPECTED_HARDWARE, *exit_codes.NEVER]
    never = "; ".join(f"{code}: {exit_codes.reason(code)}" for code in sorted(ends))
    restart = sorted({*exit_codes.RESTART, *(128 + number for number in exit_codes.SIGNALS)})
    namespace, queue = job.options.get("namespace"), job.options.get("queue")
    image = job.options.get("image") or f"maverick-jax:{version('maverick-jax')}-{job.platform}"
    return fill(
        template("jobset.yaml"),
        name=job.name,
        machines=f"{job.nodes} host{'s' if job.nodes > 1 else ''}" + (f" of {job.accelerator}" * bool(job.accelerator)),
        made_by=comment(f"Made by: {job.command()}"),
        config_map="---" if job.is_shipped else _config_map(job),
        namespace=f"namespace: {scalar(namespace)}" if namespace else "",
        labels=f"labels: {{kueue.x-k8s.io/queue-name: {scalar(queue)}}} # Kueue starts it when there is room"
        * bool(queue),
        annotations=_annotations(job),
        max_restarts=str(job.max_restarts),
        group=GROUP,
        slices=str(job.slices),
        hosts=str(hosts),
        num_processes=str(job.nodes),
        never=comment(
            f"{never}. The log of {exit_codes.SUSPECTED_HARDWARE} names a host: leave it out with --exclude."
        ),
        restart=scalar(restart),
        node_selector=_node_selector(job),
        affinity=_affinity(job),
        tolerations=_tolerations(job),
        image=scalar(image),
        arguments=scalar([_unexpanded(word) for word in arguments]),
        coordinator=scalar(f"{job.name}-{GROUP}-0-0.{job.name}:{PORT}"),
        environment=_environment(job),
        resources=_resources(job),
        claim=scalar(job.options.get("claim") or "maverick"),
        config_mount="" if job.is_shipped else "- {name: config, mountPath: /etc/maverick, readOnly: true}",
        config_volume="" if job.is_shipped else f"- name: config\n  configMap: {{name: {job.name}}}",
    )


def with_run_dir(job: ClusterJob) -> ClusterJob:
    """The run directory is on the volume: what a pod writes elsewhere ends with it."""
    directory = job.run.run.directory
    if directory.is_relative_to(MOUNT) and ".." not in directory.parts:
        return job
    if directory.is_absolute() or ".." in directory.parts:
        raise InputError(f"run.dir: {directory} is not on the volume, which pods have at {MOUNT}: a restart would lose "
                         f"the run; give --run-dir {MOUNT}/{job.run.run.name}")  # fmt: skip
    path = f"{MOUNT}/{job.run.run.name if job.run.run.dir is None else directory}"
    run = job.run.model_copy(update={"run": job.run.run.model_copy(update={"dir": path})})
    return dataclasses.replace(job, run=run, overrides=(*job.overrides, in_directory(path)))


def _config_map(job: ClusterJob) -> str:
    """The config itself: pods do not see the file."""
    lines = [
        "---",
        "# The config with every default, as `maverick config show` prints it.",
        "apiVersion: v1",
        "kind: ConfigMap",
        "metadata:",
        f"  name: {job.name}",
        *([f"  namespace: {scalar(job.options['namespace'])}"] if "namespace" in job.options else []),
        "data:",
        "  config.yaml: |",
        *(f"    {line}" for line in job.config_text.removesuffix("\n").split("\n")),
        "---",
    ]
    return "\n".join(lines)


def _annotations(job: ClusterJob) -> str:
    if not job.shape:
        return ""
    return (
        "annotations:\n"
        "  # each Job gets a slice of its own: a node pool of GKE is one slice\n"
        "  alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool"
    )


def _node_selector(job: ClusterJob) -> str:
    """GKE's labels; TPU slices are on GKE only."""
    if job.accelerator in topologies.TPUS:
        shape = "x".join(map(str, job.shape))
        return (
            "nodeSelector:\n"
            f"  cloud.google.com/gke-tpu-accelerator: {GKE_TPUS[job.accelerator]}\n"
            f"  cloud.google.com/gke-tpu-topology: {scalar(shape)}"
        )
    if job.gke and job.platform == "cuda":
        if job.accelerator not in GKE_GPUS:
            raise InputError(f"maverick launch gke: --accelerator {job.accelerator} does not say which GPU; expected "
                             f"one of {', '.join(GKE_GPUS)}")  # fmt: skip
        return f"nodeSelector:\n  cloud.google.com/gke-accelerator: {GKE_GPUS[job.accelerator]}"
    return ""


def _affinity(job: ClusterJob) -> str:
    """Nodes that are left out, and for GPUs one pod per node."""
    if not (excluded := job.options.get("exclude")):
        return ""
    names = [name for name in excluded.split(",") if name]
    return (
        "affinity:\n"
        "  nodeAffinity:\n"
        "    requiredDuringSchedulingIgnoredDuringExecution:\n"
        "      nodeSelectorTerms:\n"
        "        - matchExpressions:\n"
        f"            - {{key: kubernetes.io/hostname, operator: NotIn, values: {scalar(names)}}}"
    )


def _tolerations(job: ClusterJob) -> str:
    key = {"cuda": "nvidia.com/gpu", "tpu": "google.com/tpu"}.get(job.platform)
    return f"tolerations:\n  - {{key: {key}, operator: Exists, effect: NoSchedule}}" if key else ""


def _resources(job: ClusterJob) -> str:
    key = {"cuda": "nvidia.com/gpu", "tpu": "google.com/tpu"}.get(job.platform)
    return f"resources: {{limits: {{{key}: {job.devices_per_node}}}}}" if key else ""


def _environment(job: ClusterJob) -> str:
    if not flags_of(job.platform):
        return ""
    entries = [f"- {{name: {name}, value: {scalar(value)}}}" for name, value in variables(job.platform).items()]
    return "\n".join([reasons(job.platform), *entries])


def _unexpanded(word: str) -> str:
    """Kubernetes replaces `$(NAME)` in arguments; two dollars stand for one."""
    return word.replace("$", "$$")
