"""Runs the integer-exact model, kills a random process of it at a random moment, starts it on the next topology, and so
on; then compares with the run that nobody interrupted.

python -m tests.helpers.killing --kills 200 --seed 0 --out record.json
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator

from maverick_jax.errors import PeerFailed
from tests.helpers.forked import Forked, Nursery, nursery
from tests.helpers.small_run import PATIENCE, Place, checksums, free_port, lines, store

TOPOLOGIES = {1: ("mesh.fsdp=8",), 2: ("mesh.data=2", "mesh.fsdp=4"), 4: ("mesh.data=4", "mesh.tensor=2")}
"""Processes, of eight devices in all -> overrides."""
CONFIG = """
plugins: [tests.helpers.integer_model, tests.helpers.injected]
run: {name: integers, steps: 30, eval_every: 7, eval_batches: 2}
model:
  base: tiny
  hidden_size: 16
  num_hidden_layers: 1
  num_attention_heads: 4
  num_key_value_heads: 2
  head_dim: 4
  intermediate_size: 16
  intermediate_size_mlp: 32
  num_local_experts: 0
  no_rope_layer_interval: 2
  attention_chunk_size: 16
  initializer_range: 1.0e-30
  compute_dtype: float32
data:
  sources: {tinyshakespeare: {path: "package:tinyshakespeare"}}
  tokenizer: bytes
  batch_size: 8
  sequence_length: 32
objective: {kind: integers}
optimizer: {kind: integers, learning_rate: 1, schedule: constant, weight_decay: 0, clip_norm: null}
checkpoint: {every: 2, keep: 3}
logging: {every: 1, progress: false}
"""
"""The run of integers. Only its processes import its plugins: what those register would show up in other tests."""
MOMENTS = ("start", "update", "save", "saved")
UNCONNECTED = 6.0
"""Seconds after which processes that wait for a dead one to connect are ended, as launchers do."""


@dataclasses.dataclass
class Kill:
    """What became of one start."""

    topology: str
    moment: str
    rank: int
    reached: int
    """The last update in metrics.jsonl when it was killed."""
    saved: int
    """The newest complete checkpoint after its end; 0: none."""
    codes: list[int]
    seconds: float | None
    """From the signal to the end of the last survivor; None: there was none, or it was ended from outside."""
    ended: bool = False
    """Whether survivors had to be ended, because the dead process had not connected."""

    @property
    def lost(self) -> int:
        """Updates that the next start does again."""
        return max(0, self.reached - self.saved)


LATER = {"start": 4.0, "update": 0.3, "save": 0.05, "saved": 0.3}
"""Longest time between a moment and the signal, in seconds."""


class Job:
    """One start of the run."""

    def __init__(
        self,
        place: Place,
        parent: Nursery,
        run_dir: pathlib.Path,
        count: int,
        *words: object,
        inject: dict | None = None,
        logs: pathlib.Path | None = None,
        name: str = "",
    ):
        """inject: a fault, as of `tests.helpers.injected`. logs: where the outputs go; None: beside the run directory.
        name: what their names begin with, besides that of the run."""
        self.run_dir, self.count, self.port = run_dir, count, free_port()
        variables: dict[str, object] = {"INJECT": json.dumps(inject or {})}
        if count > 1:
            variables |= {"MAVERICK_NUM_PROCESSES": count, "MAVERICK_COORDINATOR": f"127.0.0.1:{self.port}"}
        command = ["train", config(place), f"run.dir={run_dir}", *TOPOLOGIES[count], *words]
        self._logs = [(logs or run_dir.parent) / f"{run_dir.name}{name}.log-{number}" for number in range(count)]
        self._before = [path.stat().st_size if path.exists() else 0 for path in self._logs]
        self.processes: list[Forked] = [
            parent.start(command, path, 8 // count, MAVERICK_PROCESS_ID=number, **variables)
            for number, path in enumerate(self._logs)
        ]

    def said(self, number: int = 0) -> str:
        """What a process of this start has written."""
        path = self._logs[number]
        return path.read_bytes()[self._before[number] :].decode(errors="replace") if path.exists() else ""

    @property
    def said_by_all(self) -> str:
        return "".join(map(self.said, range(self.count)))

    def finish(self, patience: float = PATIENCE) -> list[int]:
        """Waits for all; ends those that are left after `patience` seconds."""
        end, codes = time.monotonic() + patience, []
        for process in self.processes:
            try:
                codes.append(process.wait(max(0.0, end - time.monotonic())))
            except Exception:
                process.kill()
                codes.append(process.wait(60))
        return codes

    @property
    def connected(self) -> bool:
        """Whether all processes have found each other."""
        return all(f"[Gloo] Rank {number} is connected" in self.said(number) for number in range(self.count))

    @property
    def running(self) -> bool:
        return all(process.poll() is None for process in self.processes)


def config(place: Place) -> pathlib.Path:
    path = place.root / "integers.yaml"
    if not path.exists():
        path.write_text(CONFIG)
    return path


def last_update(run_dir: pathlib.Path) -> int:
    """The last update in metrics.jsonl, which may end in half a line."""
    try:
        found = (run_dir / "metrics.jsonl").read_bytes()
    except FileNotFoundError:
        return 0
    return json.loads(found.splitlines()[-1])["step"] if found.endswith(b"\n") else 0


def saved_steps(run_dir: pathlib.Path) -> list[int]:
    return store(run_dir).steps()


def unfinished(run_dir: pathlib.Path) -> set[str]:
    """Directories of saves that are not complete."""
    folder = run_dir / "checkpoints"
    return {path.name for path in folder.iterdir() if "tmp" in path.name} if folder.is_dir() else set()


def reach(moment: str, job: Job, luck: random.Random) -> bool:
    """Waits for a moment of a start and some time more; False: the job ended before."""
    updates, steps, saves = last_update(job.run_dir), saved_steps(job.run_dir), unfinished(job.run_dir)
    conditions: dict[str, Callable[[], bool]] = {
        "start": lambda: True,
        "update": lambda: last_update(job.run_dir) not in (0, updates),
        "save": lambda: bool(unfinished(job.run_dir) - saves),
        "saved": lambda: bool(set(saved_steps(job.run_dir)) - set(steps)),
    }
    while not conditions[moment]():
        if not job.running:
            return False
        time.sleep(0.002)
    time.sleep(luck.random() * LATER[moment])
    return job.running


def kill_one(job: Job, moment: str, luck: random.Random) -> Kill | None:
    """Kills a random process at a moment, and waits for the others; None: the job ended before."""
    if not reach(moment, job, luck):
        return None
    rank, reached, since = luck.randrange(job.count), last_update(job.run_dir), time.monotonic()
    job.processes[rank].kill()
    job.processes[rank].wait(60)
    others = [process for number, process in enumerate(job.processes) if number != rank]
    ended = False
    while any(process.poll() is None for process in others):
        seconds = time.monotonic() - since
        if seconds > UNCONNECTED and not ended and not job.connected:
            ended = True
            for process in others:
                process.kill()
        assert seconds < PATIENCE, "a process outlives a dead one:\n" + job.said_by_all
        time.sleep(0.005)
    seconds = None if ended or not others else round(time.monotonic() - since, 3)
    topology, saved = f"{job.count}x{8 // job.count}", max(saved_steps(job.run_dir), default=0)
    codes = [process.wait(60) for process in job.processes]
    return Kill(topology, moment, rank, max(reached, saved), saved, codes, seconds, ended)


def kills_of(
    place: Place, parent: Nursery, run_dir: pathlib.Path, luck: random.Random, steps: int, *words: object
) -> Iterator[Kill]:
    """Starts the run and kills it, until a start ends before it is killed: then the run is complete."""
    counts = [1, 2, 1, 2, 4]  # one of four processes takes as long to start as the others together
    while True:
        luck.shuffle(counts)
        for count in counts:
            job = Job(place, parent, run_dir, count, f"run.steps={steps}", *words)
            if (kill := kill_one(job, luck.choice(MOMENTS), luck)) is None:
                codes = job.finish()
                assert codes == [0] * count, job.said_by_all
                return
            check(kill, job, steps)
            yield kill


def check(kill: Kill, job: Job, steps: int) -> None:
    """The killed process was killed, and the others left because they had lost it. Where the run of so many steps was
    complete, all that is left to wait in is JAX's own barrier, which aborts."""
    said = f"{kill}\n{job.said_by_all}"
    assert kill.codes[kill.rank] == -signal.SIGKILL, said
    aborted = kill.rank == 0 or kill.saved == steps
    allowed = (PeerFailed.exit_code, -signal.SIGABRT) if aborted else (PeerFailed.exit_code,)
    if not kill.ended:
        assert all(code in allowed for number, code in enumerate(kill.codes) if number != kill.rank), said


def finish(place: Place, parent: Nursery, run_dir: pathlib.Path, *words: object, count: int = 1) -> None:
    """Trains to the end, undisturbed."""
    job = Job(place, parent, run_dir, count, *words)
    codes = job.finish()
    assert codes == [0] * count, job.said_by_all


def compare(whole: pathlib.Path, run_dir: pathlib.Path, steps: int) -> None:
    """All bits of the last state and all logged values are equal, and no remains of saves are left."""
    assert checksums(whole, steps) == checksums(run_dir, steps)
    assert lines(whole) == lines(run_dir)
    assert store(run_dir).verify(steps) == [] and not unfinished(run_dir) and not store(run_dir).set_aside()


# ---- many ------------------------------------------------------------------------------------------------------------


def summary(kills: list[Kill], runs: int, seed: int) -> dict:
    """What the kills of one seed showed."""
    by = lambda key: dict(sorted(collections.Counter(key(kill) for kill in kills).items()))
    survivors = [code for k in kills if not k.ended for n, code in enumerate(k.codes) if n != k.rank]
    seconds = sorted(k.seconds for k in kills if k.seconds is not None)
    lost = [kill.lost for kill in kills]
    return {
        "seed": seed,
        "kills": len(kills),
        "runs": runs,
        "by_topology": by(lambda k: k.topology),
        "by_moment": by(lambda k: k.moment),
        "by_rank": by(lambda k: str(k.rank)),
        "codes_of_survivors": dict(sorted(collections.Counter(map(str, survivors)).items())),
        "jobs_killed_before_they_were_connected": sum(kill.ended for kill in kills),
        "seconds_until_the_last_survivor_ended": {
            "median": seconds[len(seconds) // 2] if seconds else None,
            "longest": max(seconds, default=None),
        },
        "updates_done_again": {"mean": round(sum(lost) / max(1, len(lost)), 2), "most": max(lost, default=0)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=100, help="updates of each run")
    options = parser.parse_args()
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place.make(pathlib.Path(folder))
        with nursery(place.environment()) as parent:
            runs = 0
            while len(kills) < options.kills:
                words = (f"run.seed={runs}",)
                luck = random.Random(f"{options.seed} {runs}")
                whole, run_dir = place.root / f"whole-{runs}", place.root / f"run-{runs}"
                finish(place, parent, whole, f"run.steps={options.steps}", *words)
                for kill in kills_of(place, parent, run_dir, luck, options.steps, *words):
                    kills.append(kill)
                    print(len(kills), kill, flush=True)
                compare(whole, run_dir, options.steps)
                runs += 1
                found = summary(kills, runs, options.seed)
                if options.out:
                    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
