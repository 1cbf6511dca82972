"""Devices of clusters that are not at hand, for which programs can be compiled: NVIDIA GPUs and TPU slices.

A topology is `KIND:SHAPE`: `h200:512` or `h200:64x8` (hosts x GPUs; 8 to a host unless given), `v5p:8x8x8` or
`v6e:16x16` (chips along each link). `2*v6e:16x16` is two slices. Compiling needs the compilers, which the extra
`compilers` installs, and no device or driver.
"""

import importlib.util
import json
import os
import pathlib
import re
from typing import Any

import jax
from jax.experimental import topologies

from maverick_jax.errors import InputError
from maverick_jax.ops.attention.cudnn import missing
from maverick_jax.settings.section import did_you_mean
from maverick_jax.target import Target

GPUS = ("h100", "h200", "b200")
TPUS = {"v5e": 2, "v5p": 3, "v6e": 2}
"""Number of axes along which the chips of a slice are linked."""
GPUS_PER_HOST = 8
_NAME = re.compile(r"(?:(?P<slices>[1-9]\d{0,3})\*)?(?P<kind>[a-z0-9]+):(?P<shape>[1-9]\d{0,5}(?:x[1-9]\d{0,5}){0,2})")
_TPU_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",  # ask no metadata server which machine this is
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile at the same time
}


def topology(name: str) -> Target:
    """The devices of the topology `name`, which programs can be compiled for. Raises InputError for a name that means
    none, and if its compiler is not installed."""
    slices, kind, shape = parse(name)
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")  # else JAX looks for devices, and the compilers' plugins warn of none
    try:
        if kind in GPUS:
            _require("jax_plugins.xla_cuda13", name)
            if (reason := missing()) is not None:
                raise InputError(f"--topology {name}: programs for GPUs are compiled with cuDNN, {reason}; "
                                 "pip install 'maverick-jax[compilers]'")  # fmt: skip
            hosts, gpus = shape
            devices = topologies.get_topology_desc(
                platform="cuda", target_config=gpu_description(kind), topology=f"{slices}x{hosts}x{gpus}"
            ).devices
        else:
            _require("libtpu", name)
            for key, value in _TPU_SETTINGS.items():
                os.environ.setdefault(key, value)
            more = {"num_slices": slices} if slices > 1 else {}
            sizes = "x".join(map(str, shape))
            devices = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{sizes}", **more).devices
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--topology {name}: the compiler knows no such topology ({error})") from None
    return Target(tuple(devices), attached=False)


def parse(name: str) -> tuple[int, str, tuple[int, ...]]:
    """(slices, kind, shape) of a topology; a GPU's shape is (hosts, GPUs per host)."""
    found = _NAME.fullmatch(name)
    if found is None or found["kind"] not in (*GPUS, *TPUS):
        kind = name.partition(":")[0].rpartition("*")[2]
        near = did_you_mean(kind, (*GPUS, *TPUS)) or "."
        raise InputError(
            f"--topology {name}: not a topology{near} Expected KIND:SHAPE, such as "
            f"h200:512, v5p:8x8x8 or 2*v6e:16x16; kinds: {', '.join((*GPUS, *TPUS))}"
        )
    kind, shape = found["kind"], tuple(map(int, found["shape"].split("x")))
    if kind in GPUS:
        if len(shape) == 1:
            shape = (1, shape[0]) if shape[0] <= GPUS_PER_HOST else (shape[0] // GPUS_PER_HOST, GPUS_PER_HOST)
            if shape[0] * shape[1] != int(found["shape"]):
                raise InputError(
                    f"--topology {name}: hosts have {GPUS_PER_HOST} GPUs; give hosts and GPUs, as h200:3x4"
                )
        if len(shape) != 2:
            raise InputError(f"--topology {name}: expected a number of GPUs or HOSTSxGPUS, such as {kind}:64x8")
    elif len(shape) != TPUS[kind]:
        raise InputError(f"--topology {name}: chips of {kind} are linked along {TPUS[kind]} axes")
    return int(found["slices"] or 1), kind, shape


def gpu_description(kind: str) -> str:
    """XLA's description of a GPU (`GpuTargetConfigProto` as text), from the facts in `gpu_targets.json`."""
    facts = json.loads(pathlib.Path(__file__).with_name("gpu_targets.json").read_text())
    values: dict[str, Any] = facts["common"] | facts[kind]
    major, minor = values.pop("compute_capability")
    links, dnn = values.pop("active_links"), values["dnn_version"].split(".")
    lines = [f"  {key}: {_text(value)}" for key, value in values.items()]
    lines += [
        f"  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: ACCELERATED_FEATURES }}",
        f"  device_interconnect_info {{ active_links: {links} }}",
    ]
    version = " ".join(f"{name}: {n}" for name, n in zip(("major", "minor", "patch"), dnn, strict=True))
    return "\n".join(
        ["gpu_device_info {", *lines, "}", 'platform_name: "CUDA"', f"dnn_version_info {{ {version} }}",
         f"device_description_str: {_text(values['name'])}"]
    )  # fmt: skip


def _text(value: Any) -> str:
    return json.dumps(value)


def _require(module: str, name: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise InputError(f"--topology {name}: the compiler is not installed; pip install 'maverick-jax[compilers]'")
