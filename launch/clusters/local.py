"""Jobs of one or several processes on this machine: a script to read and keep, and the run itself."""

import os
import pathlib
import sys
from collections.abc import Mapping
from typing import IO

from launch.clusters import exit_codes
from launch.clusters.environment import exports, variables
from launch.clusters.job import ClusterJob
from launch.clusters.rendering import comment, fill, shell, template
from launch.clusters.supervisor import Patience, Restarts, supervise

SUFFIX = ".sh"


def render(job: ClusterJob) -> str:
    """A script that starts the job."""
    restarts, patience = Restarts(), Patience()
    codes = " and ".join(map(str, exit_codes.RESTART)).replace(" and ", ", ", len(exit_codes.RESTART) - 2)
    rule = f"The job is started once; --restart would start it again after exit codes {codes}."
    if job.options.get("restart"):
        rule = f"""After exit codes {codes} the job is started again, at most {job.max_restarts} times, after a delay
            that doubles while there is no progress; {restarts.crash_loop} starts in a row without progress end it. No
            other code leads to a restart."""
    venv = job.options.get("venv")
    options = {**job.options, "venv": None}
    words = [*job.arguments, *job.flags(options), "--submit"]
    return fill(
        template("local.sh"),
        name=job.name,
        processes=f"{job.processes} process{'es' if job.processes > 1 else ''}",
        made_by=comment(f"Made by: {job.command()}"),
        environment=exports(job.platform),
        after_failure=f"{patience.after_failure:.0f}",
        after_save=f"{patience.after_save:.0f}",
        restart=comment(rule),
        venv=f"source {shell([f'{venv}/bin/activate'])} || exit 78" if venv else "",
        arguments=shell(words),
    )


def start(job: ClusterJob, out: IO[str]) -> int:
    """Runs the job to its end, its lines copied to `out`. Returns its exit code."""
    venv = job.options.get("venv")
    program = [str(pathlib.Path(venv) / "bin" / "maverick")] if venv else [sys.executable, "-m", "launch.cli"]
    shared = {name: value for name, value in variables(job.platform).items() if name not in os.environ}

    def environment(number: int) -> Mapping[str, str]:
        if job.platform != "cuda" or not job.devices_per_node or job.processes == 1:
            return shared
        each = job.devices_per_node // job.processes
        return {**shared, "CUDA_VISIBLE_DEVICES": ",".join(str(number * each + i) for i in range(each))}

    restarts = Restarts(budget=job.max_restarts) if job.options.get("restart") else None
    command = [*program, "train", *job.arguments]
    return supervise(command, job.processes, job.run.run.directory, restarts, environment, out=out)
