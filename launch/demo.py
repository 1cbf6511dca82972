"""`make demo`: the whole life of a run in a few minutes on a CPU, with the ordinary commands.

It pretrains the `demo` config, interrupts it as a preempting cluster would, resumes it, generates text, exports the
model to a Hugging Face folder and writes a report.
"""

import itertools
import json
import pathlib
import signal
import subprocess
import sys
import time

from maverick_jax.errors import MaverickError, Preempted

PROMPT = "ROMEO:"
POLL_SECONDS = 0.5


class DemoFailed(MaverickError):
    """A command of the demo ended with an unexpected exit code."""


def main() -> int:
    try:
        run_dir = next(path for i in itertools.count(1) if not (path := pathlib.Path(f"runs/demo-{i}")).exists())
        demo(run_dir)
    except MaverickError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def demo(run_dir: pathlib.Path) -> None:
    """Run all steps of the demo in `run_dir`, which must not exist. Raises DemoFailed if a command fails."""
    began = time.monotonic()
    train = ["train", "demo", f"run.dir={run_dir}"]
    _say("pretrain, and interrupt the run")
    _interrupt(_start(train), run_dir)
    _say("the same command again: it resumes")
    _run(train)
    _say(f"generate text from {PROMPT!r}")
    sample = ["generate", str(run_dir), "--prompt", PROMPT + "\n", "--max-tokens", "240", "--temperature", "0.8"]
    (run_dir / "sample.txt").write_text(PROMPT + "\n" + _output(sample))  # for the report
    _say("export for transformers and vLLM")
    _run(["export", str(run_dir), str(run_dir / "huggingface"), "--dtype", "float32"])
    _say("report")
    _run(["report", str(run_dir)])
    first, last = _losses(run_dir)
    print(f"\n{run_dir}: loss {first:.2f} -> {last:.2f} nats per byte in {time.monotonic() - began:.0f} s")


def _start(arguments: list[str], stdout: int | None = None) -> subprocess.Popen:
    print("$ maverick " + " ".join(map(_quoted, arguments)), flush=True)
    return subprocess.Popen([sys.executable, "-m", "launch.cli", *arguments], stdout=stdout, text=True)


def _quoted(word: str) -> str:
    return repr(word) if any(c.isspace() for c in word) else word


def _run(arguments: list[str]) -> None:
    code = _start(arguments).wait()
    if code:
        raise DemoFailed(f"maverick {arguments[0]} ended with exit code {code}; expected 0")


def _output(arguments: list[str]) -> str:
    """Print and return the output of a command."""
    process = _start(arguments, stdout=subprocess.PIPE)
    text, _ = process.communicate()
    print(text, end="", flush=True)
    if process.returncode:
        raise DemoFailed(f"maverick {arguments[0]} ended with exit code {process.returncode}; expected 0")
    return text


def _interrupt(process: subprocess.Popen, run_dir: pathlib.Path) -> None:
    """Send the signal of a preemption as soon as the run has written its first metrics."""
    while process.poll() is None and not _lines(run_dir):
        time.sleep(POLL_SECONDS)
    process.send_signal(signal.SIGTERM)
    if (code := process.wait()) != Preempted.exit_code:
        raise DemoFailed(f"maverick train, interrupted, ended with exit code {code}; expected {Preempted.exit_code}")


def _lines(run_dir: pathlib.Path) -> list[dict]:
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _losses(run_dir: pathlib.Path) -> tuple[float, float]:
    losses = [line["loss"] for line in _lines(run_dir) if "loss" in line]
    return losses[0], losses[-1]


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
