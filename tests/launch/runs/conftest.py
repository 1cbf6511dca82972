"""Run directories of files alone, for the tests of this folder."""

import json

import pytest

from maverick_jax.checkpoint.lease import Holder


@pytest.fixture
def run(tmp_path):
    """`run(name, timeline, step=, holder=, saved=)`: a run of 20 steps with these lines in goodput.jsonl, a training
    line up to `step`, an evaluation of its last step, a lease and (empty) checkpoints."""

    def make(name: str, timeline=(), *, step: int = 4, holder: Holder | None = None, saved=(), **more):
        directory = tmp_path / "all" / name
        (directory / "checkpoints").mkdir(parents=True)
        (directory / "config.yaml").write_text("run: {steps: 20}\n")
        lines = [{"step": s, "loss": 5 - s / 10, "tokens_per_second": 1000 * s, "step_seconds": 2.0, **more}
                 for s in range(1, step + 1)]  # fmt: skip
        lines += [{"step": step, "eval_loss": 3.25, "eval_seconds": 1.0}]
        for file, written in (("metrics.jsonl", lines), ("goodput.jsonl", timeline)):
            (directory / file).write_text("".join(json.dumps(line) + "\n" for line in written))
        for number in saved:
            (directory / "checkpoints" / str(number)).mkdir()
        if holder is not None:
            (directory / "checkpoints" / "lease.json").write_text(holder.model_dump_json())
        return directory

    return make


@pytest.fixture
def elsewhere():
    """A lease of a process on another machine, renewed at second 1,000."""
    return Holder(host="far\x1b[2J", machine="another", pid=1, started=None, job="17", token="a", since=900, beat=1000)
