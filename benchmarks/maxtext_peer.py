"""The same train step in MaxText, through its documented pretraining command, in a separate environment.

MaxText needs Python 3.12 or later, so it cannot share our environment. Its own `seconds:` are dispatch times for the
first steps, so the time between two "completed step" lines is used instead.
"""

import dataclasses
import itertools
import os
import pathlib
import re
import subprocess
import tempfile
import time
from typing import TextIO

from benchmarks.shapes import Shape
from benchmarks.worker import WorkerFailed, environment
from maverick_jax.errors import InputError

UNTIMED_STEPS = 3
"""Steps that include compilation or are dispatched before the first has ended."""
_COMPLETED = re.compile(r"completed step: (\d+)")


@dataclasses.dataclass(frozen=True)
class MaxTextRun:
    step_seconds: list[float]
    peak_bytes: int


@dataclasses.dataclass(frozen=True)
class Installation:
    """An installation of MaxText and its Python interpreter."""

    python: str
    package: pathlib.Path
    version: str


def find(python: str) -> Installation:
    """MaxText in the environment of the interpreter `python`. Raises InputError if it is not installed there."""
    program = (
        "import importlib.metadata, importlib.util;"
        "print(importlib.util.find_spec('maxtext').submodule_search_locations[0]);"
        "print(importlib.metadata.version('maxtext'))"
    )
    try:
        found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
        package, version = found.stdout.splitlines()[:2]
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise InputError(
            f"--maxtext-python {python}: expected the Python interpreter of an environment that has MaxText ({why})"
        ) from None
    return Installation(python, pathlib.Path(package), version)


def run(maxtext: Installation, shape: Shape, *, dtype: str, steps: int) -> MaxTextRun:
    """Time `steps` steps after the untimed ones. Raises WorkerFailed if the run ends early."""
    flags = _flags(shape, dtype=dtype, steps=UNTIMED_STEPS + steps)
    base = maxtext.package / "configs" / "base.yml"
    command = [maxtext.python, "-m", "maxtext.trainers.pre_train.train", str(base)]
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryFile("w+") as log:
        command += [f"base_output_directory={out}", *(f"{key}={value}" for key, value in flags.items())]
        completed, code, peak_bytes = _time_lines(command, log)
        if code or len(completed) != UNTIMED_STEPS + steps:
            raise WorkerFailed(
                f"MaxText ended with code {code} after {len(completed)} of {UNTIMED_STEPS + steps} steps; "
                f"the end of its log:\n{_tail(log)}"
            )
    since = completed[UNTIMED_STEPS - 1 :]
    return MaxTextRun([b - a for a, b in itertools.pairwise(since)], peak_bytes)


def _time_lines(command: list[str], log: TextIO) -> tuple[list[float], int, int]:
    """Time of each "completed step" line, exit code, and peak resident memory of the process in bytes."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(DECOUPLE_GCLOUD="TRUE", PYTHONUNBUFFERED="1"),
        text=True,
        errors="replace",
    )
    completed = []
    try:
        with process.stdout as output:
            for line in output:
                log.write(line)
                if _COMPLETED.search(line):
                    completed.append(time.perf_counter())
    except BaseException:
        process.kill()
        process.wait()
        raise
    # wait4 gives the memory of this child; getrusage(RUSAGE_CHILDREN) would include other children.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return completed, process.returncode, usage.ru_maxrss * 1024


def _flags(shape: Shape, *, dtype: str, steps: int) -> dict[str, object]:
    """MaxText's settings for the same network, batch and optimizer; remat and loss keep its defaults."""
    network = {
        "model_name": "llama4-17b-128e",
        "override_model_config": True,
        "vocab_size": shape.vocab_size,
        "base_emb_dim": shape.hidden_size,
        "base_num_decoder_layers": shape.num_hidden_layers,
        "base_num_query_heads": shape.num_attention_heads,
        "base_num_kv_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "base_mlp_dim": shape.intermediate_size_mlp,
        "base_moe_mlp_dim": shape.intermediate_size,
        "num_experts": shape.num_local_experts,
        "num_experts_per_tok": 1,
        "shared_experts": 1,
        "interleave_moe_layer_step": 2,
        "nope_layer_interval": 4,
        "inhomogeneous_layer_cycle_interval": 4,
        "chunk_attn_window_size": shape.attention_chunk_size,
        "max_target_length": shape.sequence_length,
    }
    # Its TPU kernels do not run on a CPU; of its two expert implementations, use the faster one for the dtype.
    computation = {
        "hardware": "cpu",
        "attention": "dot_product",
        "megablox": False,
        "sparse_matmul": dtype == "bfloat16",
        "scan_layers": True,
        "dtype": dtype,
        "weight_dtype": "float32",
    }
    run_settings = {
        "run_name": "benchmark",
        "steps": steps,
        "per_device_batch_size": shape.batch_size,
        "dataset_type": "synthetic",
        "enable_checkpointing": False,
        "enable_goodput_recording": False,
        "monitor_goodput": False,
        "sharding_tolerance": 1.0,
        "skip_jax_distributed_system": True,
        "log_config": False,
        "jax_cache_dir": "",
    }
    return network | computation | run_settings


def _tail(log: TextIO, lines: int = 20) -> str:
    log.seek(0)
    return "".join(log.readlines()[-lines:])
