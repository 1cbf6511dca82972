"""A small real run: its config, and helpers that start, damage and compare its processes and folders."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest

from maverick_jax.checkpoint.store import CheckpointStore

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 900
"""Seconds that a test waits for a process before it fails. Even on a busy machine, only a process that hangs takes
longer."""
TIMINGS = ("step_seconds", "tokens_per_second", "eval_seconds", "mfu", "goodput", "energy_kwh")
TIMINGS += ("sampling_seconds", "environment_seconds", "sampling_share")
TIMINGS += ("step_seconds_slowest", "step_seconds_median", "slowest_rank")
"""Values of a record that depend on the clock."""
CLOCKS = (time.thread_time, pytest.param(time.perf_counter, marks=pytest.mark.slow))
"""Clocks for time limits. On a busy machine only the CPU time of this thread is meaningful."""
STEPS = 24

CONFIG = f"""
run: {{name: small, steps: {STEPS}, eval_every: 6, eval_batches: 2}}
model:
  base: tiny
  hidden_size: 32
  num_attention_heads: 4
  num_key_value_heads: 2
  head_dim: 8
  intermediate_size: 32
  intermediate_size_mlp: 64
  num_local_experts: 4
  no_rope_layer_interval: 2
  attention_chunk_size: 16
data:
  sources: {{tinyshakespeare: {{path: "package:tinyshakespeare"}}}}
  tokenizer: bytes
  batch_size: 8
  sequence_length: 32
optimizer: {{learning_rate: 2e-3, warmup_steps: 2, schedule: constant, accumulation_steps: 2}}
checkpoint: {{every: 3, keep: 30}}
logging: {{every: 1, progress: false}}
"""


@dataclasses.dataclass(frozen=True)
class Place:
    """The folder of a test session's runs, which share the config file, tokenized data and compiled programs."""

    root: pathlib.Path

    @classmethod
    def make(cls, root: pathlib.Path) -> "Place":
        (root / "small.yaml").write_text(CONFIG)
        return cls(root)

    @property
    def config(self) -> str:
        return str(self.root / "small.yaml")

    def environment(self, devices: int = 1, **more) -> dict[str, str]:
        """The environment of a user's process, without the stricter settings of tests."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAVERICK", "SLURM"))}
        return kept | {
            "PYTHONPATH": str(REPOSITORY),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".cache" / "jax-runs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "MAVERICK_CACHE": str(self.root / "cache"),
            **{key: str(value) for key, value in more.items()},
        }

    def start(self, run_dir: pathlib.Path, *overrides, config=None, devices=1, log="log", **environment):
        """Starts `maverick train` in its own process; its output goes to the file `<run_dir>.<log>`."""
        words = [config or self.config, f"run.dir={run_dir}", *overrides]
        with run_dir.with_name(run_dir.name + f".{log}").open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "launch.cli", "train", *map(str, words)],
                stdout=file,
                stderr=file,
                env=self.environment(devices, **environment),
                cwd=self.root,
            )

    def train(self, run_dir: pathlib.Path, *overrides, code: int = 0, **how) -> str:
        """Runs `maverick train` to its end and checks its exit code. Returns its output."""
        said = log_of(run_dir, how.get("log", "log"))
        before = len(said)
        found = finish(self.start(run_dir, *overrides, **how))
        said = log_of(run_dir, how.get("log", "log"))[before:]
        assert found == code, said
        return said


def finish(process: subprocess.Popen, timeout: float = PATIENCE) -> int:
    try:
        return process.wait(timeout)
    finally:
        process.kill()


def log_of(run_dir: pathlib.Path, log: str = "log") -> str:
    path = run_dir.with_name(run_dir.name + f".{log}")
    return path.read_text() if path.exists() else ""


def wait_for(condition, process: subprocess.Popen, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before the condition was met"
        assert time.monotonic() < end, "the condition was never met"
        time.sleep(0.001)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- the files of a run ----------------------------------------------------------------------------------------------


def lines(run_dir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl, without values that depend on the clock."""
    read = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read]


def losses(run_dir: pathlib.Path) -> list[float]:
    return [line["loss"] for line in lines(run_dir) if "loss" in line]


def store(run_dir: pathlib.Path) -> CheckpointStore:
    return CheckpointStore(run_dir / "checkpoints", read_only=True)


def checksums(run_dir: pathlib.Path, step: int) -> dict[str, str]:
    """The checksum of every array of the state after update `step`."""
    return {name: entry["checksum"] for name, entry in store(run_dir).meta(step)["arrays"].items()}


def assert_same_run(one: pathlib.Path, other: pathlib.Path, step: int = STEPS) -> None:
    """Checks that all logged values and all bits of the final state are equal."""
    assert lines(one) == lines(other)
    assert lines(one)[-1]["step"] == step
    assert checksums(one, step) == checksums(other, step)


def cut_back(whole: pathlib.Path, run_dir: pathlib.Path, step: int) -> pathlib.Path:
    """A copy of `whole` in the state that a process leaves if it dies soon after saving update `step`."""
    shutil.copytree(whole, run_dir)
    for path in (run_dir / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    return run_dir


def contents(folder: pathlib.Path) -> dict[str, str]:
    """The digest of each file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
