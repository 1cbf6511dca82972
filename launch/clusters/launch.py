"""`maverick launch`: renders a job, and prints, writes or starts it."""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile
from types import ModuleType
from typing import Any

from launch.clusters import kubernetes, local, skypilot, slurm
from launch.clusters.exit_codes import reason
from launch.clusters.job import ClusterJob, job_of
from launch.clusters.rendering import shell
from maverick_jax.errors import CheckFailed, InputError, MaverickError
from maverick_jax.files import write_atomically

TARGETS: dict[str, ModuleType] = {"local": local, "slurm": slurm, "kubernetes": kubernetes, "skypilot": skypilot}


class LaunchedJobEnded(MaverickError):
    """A job on this machine ended with an exit code of its own, which is that of the command too."""

    def __init__(self, code: int):
        super().__init__(f"the job ended with exit code {code} ({reason(code)})")
        self.exit_code = code


def launch(args: argparse.Namespace) -> dict[str, Any]:
    """Does what a command line asks for. Returns the target, the rendered `job`, the `path` it was written to and what
    the cluster's program said (`submitted`), each null if there is none.

    Raises InputError for bad options and configs, and for a missing program of the cluster, before anything is written;
    CheckFailed if that program refuses the job; LaunchedJobEnded after a job here that did not end with 0.
    """
    job = job_of(args)
    target = TARGETS[job.target]
    starts = args.submit or args.restart
    if starts and target is not local and shutil.which(target.SUBMIT[0]) is None:
        raise InputError(f"--submit: {target.SUBMIT[0]} is not installed here; without --submit the job is printed")
    text = target.render(job)
    path = _write(pathlib.Path(args.out), job, text, target.SUFFIX) if args.out else None
    submitted = None
    if starts and target is local:
        if code := local.start(job, sys.stderr if args.json else sys.stdout):
            raise LaunchedJobEnded(code)
        submitted = f"{job.run.run.directory}: finished"
    elif starts:
        submitted = _submit(target, text, path)
    return {"target": job.target, "job": text, "path": path and str(path), "submitted": submitted}


def show(found: dict[str, Any]) -> str:
    """What the verb prints: what the cluster said, or the path, or the job itself."""
    return found["submitted"] or found["path"] or found["job"].rstrip("\n")


def _write(folder: pathlib.Path, job: ClusterJob, text: str, suffix: str) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{job.name}{suffix}"
    write_atomically(path, text.encode())
    return path


def _submit(target: ModuleType, text: str, path: pathlib.Path | None) -> str:
    """Gives the job's file to the cluster's program: the one that was written, or a temporary one."""
    with tempfile.NamedTemporaryFile("w", prefix="maverick-", suffix=target.SUFFIX) as file:
        file.write(text)
        file.flush()
        command = [*target.SUBMIT, str(path or file.name)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip()
    if done.returncode:
        raise CheckFailed(f"{shell(target.SUBMIT)} refused the job with exit code {done.returncode}: {said}")
    return said
