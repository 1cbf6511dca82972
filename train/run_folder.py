"""What a run's directory says about the run: `config.yaml`, `environment.json` and the tokenizer."""

import datetime
import json
import pathlib
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import jax

import train
from maverick_jax.files import write_atomically
from maverick_jax.settings.strict_yaml import dump
from train.config_files import resolved
from train.session import Session

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
MAX_STARTS = 100
"""Most starts that `environment.json` keeps: the first, and the newest others."""


def describe(session: Session, step: int, flops_per_token: float) -> None:
    """Write the files; process 0 alone does. `step` is where this start resumes; 0: a new run."""
    if jax.process_index():
        return
    config, run_dir, feed = session.config, session.config.run.directory, session.feed
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / "config.yaml", dump(resolved(config)).encode())
    path = run_dir / "environment.json"
    environment = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "mesh": dict(session.mesh.shape),
        "data": feed.train.fingerprint,
        "parameters": config.model.num_parameters(),
        "active_parameters": config.model.num_active_parameters(),
        "references": {
            name: {
                "path": found.path,
                "parameters": found.config.num_parameters(),
                "active_parameters": found.config.num_active_parameters(),
            }
            for name, found in session.references.items()
        },
        "train_flops_per_token": flops_per_token,
        "starts": kept_starts(_starts(path) if step else [], start_record(step)),
    }
    write_atomically(path, json.dumps(environment, indent=2).encode())
    feed.train.tokenizer.save(run_dir)


def kept_starts(earlier: list[Any], new: dict[str, Any]) -> list[Any]:
    """The starts to record: at most `MAX_STARTS`, the first among them."""
    return [*earlier[:1], *earlier[1:][2 - MAX_STARTS :], new]


def start_record(step: int) -> dict[str, Any]:
    """When, where and how this process was started, for `environment.json`."""
    name = pathlib.Path(sys.argv[0]).name
    return {
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "command": shlex.join(["maverick" if name == "cli.py" else name, *sys.argv[1:]]),
        "version": version("maverick-jax"),
        "commit": commit_of(pathlib.Path(train.__file__).parent.parent),
    }


def commit_of(checkout: pathlib.Path) -> str | None:
    """The git commit of a checkout, followed by `+changes` if tracked files differ from it; None if `checkout` is not
    the root of a git working tree, or git is missing or refuses it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")) != checkout.resolve():
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _starts(path: pathlib.Path) -> list[Any]:
    """The starts that an earlier process recorded; none if the file cannot be read."""
    try:
        found = json.loads(path.read_bytes())["starts"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return found if isinstance(found, list) else []
