"""A SLURM of one node on loopback, for tests that submit jobs: munged, slurmctld and slurmd with files of their own.

A second node is declared and down, so that a job which may not use the first one waits.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

from tests.helpers.small_run import PATIENCE, free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue", "scontrol", "srun")

CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
NodeName=absent NodeAddr=127.0.0.1 Port=9 CPUs={cpus} State=DOWN Reason="takes jobs that wait"
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no SLURM can be started here; None if it can."""
    paths = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if absent := [name for name in PROGRAMS if shutil.which(name, path=paths) is None]:
        return f"{', '.join(absent)} not installed (Debian: apt-get install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "slurmd has to be started by root"


class OneNodeSlurm:
    """Submits and follows jobs."""

    def __init__(self, folder: pathlib.Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment

    def __call__(self, *command: object, **more: str) -> str:
        """What a command of SLURM prints. An exit code other than 0 is an AssertionError."""
        words = [str(word) for word in command]
        done = subprocess.run(words, env={**self.environment, **more}, capture_output=True, text=True, cwd=self.folder)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """The fields of a job, as `scontrol show job` prints them."""
        words = self("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, number: str, condition, seconds: float = PATIENCE) -> dict[str, str]:
        """Waits until a job's fields meet the condition."""
        end = time.monotonic() + seconds
        while not condition(found := self.job(number)):
            assert time.monotonic() < end, f"job {number} stayed {found['JobState']}\n{self.logs()}"
            time.sleep(0.5)
        return found

    def logs(self) -> str:
        return "\n".join(path.read_text()[-4000:] for path in sorted(self.folder.glob("*.log")))


@contextlib.contextmanager
def one_node_slurm(folder: pathlib.Path) -> Iterator[OneNodeSlurm]:
    """A cluster whose files are in `folder`; its programs end with the block."""
    folder.chmod(0o755)
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o755)
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o600)
    host, config = socket.gethostname().partition(".")[0], folder / "slurm.conf"
    config.write_text(
        CONFIG.format(host=host, folder=folder, ctld=free_port(), slurmd=free_port(), cpus=os.cpu_count())
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAVERICK", "SLURM"))}
    environment = {**kept, "SLURM_CONF": str(config), "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    munge = [
        "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge/key",
        f"--pid-file={folder}/munge/pid", f"--seed-file={folder}/munge/seed", f"--log-file={folder}/munge/log",
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for command in (munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c", "-N", host]):
            stack.enter_context(_running(command, environment))
            if command is munge:
                # it looks up addresses before it answers, which takes half a minute where no name server does
                _wait_until(lambda: "MUNGE:" in _said(["munge", "-n", f"--socket={folder}/munge.socket"], environment))
        slurm = OneNodeSlurm(folder, environment)
        _wait_until(lambda: "idle" in _said(["sinfo", "--noheader", "--format=%t"], environment))
        yield slurm
        _said(["scancel", "--full", "--user=root"], environment)


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    out = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=out, stderr=out, stdin=out) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


def _said(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def _wait_until(condition, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "SLURM did not start"
        time.sleep(0.2)
