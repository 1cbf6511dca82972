"""What a launcher is asked for, checked before it renders: a run, its machines, and the options of a cluster."""

import argparse
import dataclasses
import math
import re
from typing import Any, NamedTuple, get_args

from launch.clusters import rendering
from maverick_jax.accounting import topologies
from maverick_jax.accounting.devices import Hardware
from maverick_jax.errors import InputError
from maverick_jax.settings import shipped, strict_yaml
from maverick_jax.settings.redaction import secret_keys
from maverick_jax.settings.section import did_you_mean
from maverick_jax.settings.strict_yaml import Location
from train.config import RunConfig, check_against_mesh
from train.config_files import read_run, resolved

OPTIONS = {
    "nodes": ("slurm", "kubernetes", "skypilot"),
    "processes": ("local", "slurm"),
    "devices_per_node": ("local", "slurm", "kubernetes", "skypilot"),
    "accelerator": ("local", "slurm", "kubernetes", "skypilot"),
    "image": ("slurm", "kubernetes", "skypilot"),
    "venv": ("local", "slurm"),
    "partition": ("slurm",),
    "account": ("slurm",),
    "time": ("slurm",),
    "exclude": ("slurm", "kubernetes"),
    "namespace": ("kubernetes",),
    "queue": ("kubernetes",),
    "claim": ("kubernetes",),
    "restart": ("local",),
}
"""The targets that take each option; those that are not here are taken by all."""
ANY_GPU = "gpu"
GPUS = (*(kind for kind in get_args(Hardware) if kind not in topologies.TPUS), ANY_GPU)
CHIPS_PER_HOST = 4
"""Of a TPU slice of several hosts."""


class _Form(NamedTuple):
    """What the value of an option looks like."""

    pattern: str
    expected: str


_FORMS = {
    "partition": _Form(r"[A-Za-z0-9_][A-Za-z0-9_.,+-]*", "letters, digits and _ . , + -, such as gpu or a100,h100"),
    "account": _Form(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*", "letters, digits and _ . @ + -, such as my_team"),
    "time": _Form(
        r"\d{1,6}|\d{1,6}:\d{2}|\d{1,4}:\d{2}:\d{2}|\d{1,3}-\d{1,2}(:\d{2}){0,2}",
        "minutes, hours:minutes:seconds or days-hours, such as 90, 24:00:00 or 2-12",
    ),
    "exclude": _Form(
        r"[A-Za-z0-9]([A-Za-z0-9_.,\[\]-]*[A-Za-z0-9\]])?", "names of nodes, such as node7,node9 or node[1-4]"
    ),
    "namespace": _Form(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "lower-case letters, digits and -, such as my-team"),
    "queue": _Form(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", "lower-case letters, digits, . and -, such as my-queue"),
    "claim": _Form(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "lower-case letters, digits, . and -, such as maverick"),
    "image": _Form(r"[A-Za-z0-9./][A-Za-z0-9._/:@#+-]{0,510}", "an image's name, such as registry.example/maverick:1"),
}
"""What the cluster's own programs accept, less what a shell or YAML could read otherwise."""


@dataclasses.dataclass(frozen=True)
class ClusterJob:
    """One job: how a run is started on the machines of a target."""

    target: str
    config: str
    """A shipped name, or a path as the user gave it."""
    overrides: tuple[str, ...]
    run: RunConfig
    nodes: int
    processes: int
    """Per node."""
    devices_per_node: int | None
    """None: what JAX finds there."""
    accelerator: str | None
    """`h200`, `v5p`, `gpu` for any GPU; None: CPUs."""
    shape: tuple[int, ...]
    """Chips along each link of a TPU slice; empty for others."""
    slices: int
    max_restarts: int
    gke: bool
    options: dict[str, Any]
    """Options as the user gave them; those that were not given are absent."""

    @property
    def platform(self) -> str:
        """`cpu`, `cuda` or `tpu`, as in the environment file and the Dockerfile."""
        if self.accelerator is None:
            return "cpu"
        return "tpu" if self.accelerator in topologies.TPUS else "cuda"

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows `maverick train`."""
        return (self.config, *self.overrides)

    @property
    def name(self) -> str:
        """The run's name in the letters that every scheduler takes, at most 40 of them."""
        return re.sub(r"[^a-z0-9]+", "-", self.run.run.name.lower())[:40].strip("-")

    @property
    def config_text(self) -> str:
        """The whole config as YAML, for machines that do not see the file."""
        return strict_yaml.dump(resolved(self.run))

    @property
    def is_shipped(self) -> bool:
        """Whether the config comes with the package, so that every machine has it."""
        return self.config in shipped.run_names()

    def command(self) -> str:
        """The command that renders this job."""
        words = ["maverick", "launch", "gke" if self.gke else self.target, *self.arguments]
        return rendering.shell([*words, *self.flags(self.options)])

    @staticmethod
    def flags(options: dict[str, Any]) -> list[str]:
        """Options as words of a command line; those that say nothing are left out."""
        words = []
        for name, value in options.items():
            if value is True:
                words.append(_flag(name))
            elif value is not None and value is not False:
                words += [_flag(name), str(value)]
        return words


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def job_of(args: argparse.Namespace) -> ClusterJob:
    """The job that a command line asks for. Raises InputError for a config that is wrong, for options that the target
    does not take, and for machines that do not fit the config's mesh."""
    target = "kubernetes" if args.target == "gke" else args.target
    given = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None and value is not False}
    given |= {} if args.max_restarts is None else {"max_restarts": args.max_restarts}
    for name, value in given.items():
        takers = OPTIONS.get(name, (target,))
        if target not in takers:
            raise InputError(f"maverick launch {args.target}: {_flag(name)} is of {' and '.join(takers)} jobs only")
        if name in _FORMS and not re.fullmatch(_FORMS[name].pattern, str(value)):
            raise InputError(f"{_flag(name)} {value!r}: expected {_FORMS[name].expected}")
    if "image" in given and "venv" in given:
        raise InputError("--image and --venv: give one; the image has its own packages")
    if target == "local" and "max_restarts" in given and "restart" not in given:
        raise InputError("--max-restarts: a job on this machine is started again only with --restart")
    if target == "kubernetes" and "[" in given.get("exclude", ""):
        raise InputError(f"--exclude {given['exclude']}: Kubernetes knows no ranges; give each node's name")
    overrides = (*args.overrides, *([in_directory(args.run_dir)] if args.run_dir else []))
    run = read_run(args.config, overrides)
    if found := secret_keys(resolved(run)):
        raise InputError(f"{', '.join(found)}: looks like a secret, and a job's file would hold it; expected a value "
                         "without one. Give the machines the secret in their environment")  # fmt: skip
    kind, slices, shape, count = _accelerator(given.get("accelerator") or run.run.hardware, args.target)
    job = ClusterJob(
        target=target, config=args.config, overrides=overrides, run=run, accelerator=kind, slices=slices, shape=shape,
        gke=args.target == "gke", options=given, max_restarts=50 if args.max_restarts is None else args.max_restarts,
        **_machines(run, given, kind, count, args.target),
    )  # fmt: skip
    _check(job)
    return job


def in_directory(path: str) -> str:
    """The override that sets the run's directory. A path that YAML would read otherwise is quoted."""
    key = "run.dir"
    read = strict_yaml.parse_value(path, Location("command line"), key)
    return f"{key}={path}" if not read.problems and read.data == path else f"{key}={rendering.scalar(path)}"


def _accelerator(name: str | None, target: str) -> tuple[str | None, int, tuple[int, ...], tuple[int, int] | None]:
    """(kind, slices, shape of a TPU slice, (nodes, devices per node) if the name says them)."""
    if name is None or name in GPUS:
        return name, 1, (), None
    if ":" in name:
        try:
            slices, kind, shape = topologies.parse(name)
        except InputError as error:
            raise InputError(str(error).replace("--topology", "--accelerator", 1)) from None
        if kind in topologies.GPUS:
            return kind, 1, (), (slices * shape[0], shape[1])
        chips = math.prod(shape)
        per_host = min(chips, CHIPS_PER_HOST)
        return kind, slices, shape, (slices * chips // per_host, per_host)
    kinds = (*GPUS, *topologies.TPUS)
    if name in topologies.TPUS:
        raise InputError(f"--accelerator {name}: give the shape of the slice too, such as {name}:4x4"
                         f"{'x4' if topologies.TPUS[name] == 3 else ''}")  # fmt: skip
    raise InputError(f"--accelerator {name}: not known to `maverick launch {target}`{did_you_mean(name, kinds)} "
                     f"(known: {', '.join(kinds)}, or a topology such as h200:64x8)")  # fmt: skip


def _machines(run: RunConfig, given: dict, kind: str | None, count: tuple[int, int] | None, target: str) -> dict:
    """Nodes, processes and devices. What the accelerator's name does not say comes from the options, and the number of
    nodes otherwise from a mesh whose axes all have a size."""
    nodes, per_node = given.get("nodes"), given.get("devices_per_node")
    if count and nodes is not None and nodes != count[0]:
        raise InputError(f"--nodes {nodes}: --accelerator says {count[0]} nodes; give one of the two")
    if count and per_node is not None and per_node != count[1]:
        raise InputError(f"--devices-per-node {per_node}: --accelerator says {count[1]}; give one of the two")
    if count:
        nodes, per_node = count
    per_node = per_node or (topologies.GPUS_PER_HOST if kind and target != "local" else None)
    sizes = run.mesh.sizes.values()
    if nodes is None and per_node and -1 not in sizes and target != "local":
        nodes = max(1, math.prod(sizes) // per_node)
    return {"nodes": nodes or 1, "processes": given.get("processes", 1), "devices_per_node": per_node}


def _check(job: ClusterJob) -> None:
    if job.target in ("slurm", "skypilot") and job.platform == "tpu":
        raise InputError(f"maverick launch {job.target}: {job.accelerator} is a TPU; slices are launched with "
                         "`maverick launch gke`")  # fmt: skip
    if job.devices_per_node is None:
        return
    if job.devices_per_node % job.processes:
        raise InputError(f"--processes {job.processes}: does not divide the {job.devices_per_node} devices of a node")
    for stage in job.run.in_stages:
        check_against_mesh(stage, stage.mesh.resolve(job.nodes * job.devices_per_node))
