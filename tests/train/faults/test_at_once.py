"""Signals before the first step: the process ends at once, also in native code, with its exit code."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from tests.helpers.small_run import PATIENCE, REPOSITORY, finish, log_of, wait_for
from train import run
from train.config_files import read_config
from train.faults.at_once import SHOW_CURSOR, leaves_at_once

ENDINGS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "stopped as asked")]
NATIVE = """
import hashlib, sys
from train.faults.at_once import leaves_at_once
with leaves_at_once("while it worked"):
    print("up", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 * 10**9)  # minutes of native code, which no signal interrupts
"""


@pytest.mark.parametrize(("number", "code", "said"), ENDINGS)
def test_a_signal_in_native_code_ends_the_process(number, code, said):
    process = subprocess.Popen(
        [sys.executable, "-c", NATIVE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(number)
    try:
        assert process.communicate(timeout=PATIENCE)[1] == f"{said}: while it worked\n"
    finally:
        process.kill()
    assert process.returncode == code


def test_the_former_handlers_are_back_afterwards():
    before = {number: signal.getsignal(number) for number, _, _ in ENDINGS}
    with leaves_at_once("x"):
        assert all(signal.getsignal(number) is not former for number, former in before.items())
    assert {number: signal.getsignal(number) for number in before} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_handler_that_c_installed_is_back_afterwards():
    """As JAX does it in a job of several processes: Python knows nothing of such a handler."""
    code = (
        "import ctypes, os, signal\n"
        "from train.faults.at_once import leaves_at_once\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.signal(signal.SIGTERM, ctypes.c_void_p(1))  # SIG_IGN\n"
        "with leaves_at_once('x'): pass\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('alive')\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_sigterm_while_the_step_compiles_ends_with_75(runs, tmp_path):
    run_dir = tmp_path / "run"
    empty = {"JAX_COMPILATION_CACHE_DIR": tmp_path / "programs"}
    process = runs.start(run_dir, "logging.progress=true", **empty)
    wait_for(lambda: "compiling the step" in log_of(run_dir), process)
    process.send_signal(signal.SIGTERM)
    assert finish(process) == 75, log_of(run_dir)
    said = log_of(run_dir)
    last = said.rstrip().splitlines()[-1]  # the live display may have ended its line meanwhile
    assert last.startswith("stopped as asked: the first step was not reached")
    assert all(word in said for word in ("run small in", "model:", "mesh: one device", "data: tinyshakespeare"))


def test_ctrl_c_on_a_terminal_while_the_step_compiles_ends_with_130(runs, tmp_path):
    ours, theirs = pty.openpty()
    words = [runs.config, f"run.dir={tmp_path / 'run'}", "logging.progress=true"]
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "train", *words],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=runs.environment(JAX_COMPILATION_CACHE_DIR=tmp_path / "programs", TERM="xterm"),
        cwd=runs.root,
    )
    os.close(theirs)
    said = b""
    try:
        while b"compiling the step" not in said:
            said += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
    while not said.endswith(SHOW_CURSOR.encode()):
        said += os.read(ours, 4096)
    assert b"interrupted: the first step was not reached" in said
    assert b"Traceback" not in said and b"Fatal" not in said
    os.close(ours)


PREPARING = """
import hashlib, sys
from train import run
from train.config_files import read_config

def prepare(config, parts, train):
    print("up", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 * 10**9)

run.Session.open = prepare
run.train_to_end(read_config("pretrain_tiny", [f"run.dir={sys.argv[1]}"]))
"""


@pytest.mark.parametrize(("number", "code", "said"), ENDINGS)
def test_a_signal_while_data_is_prepared_ends_the_process(number, code, said, tmp_path):
    command = [sys.executable, "-c", PREPARING, str(tmp_path / "run")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(number)
    try:
        assert process.communicate(timeout=PATIENCE)[1].splitlines()[-1] == f"{said}: {run.NOTHING_LOST}"
    finally:
        process.kill()
    assert process.returncode == code


def test_a_reference_trains_with_the_former_handlers(monkeypatch):
    before = {number: signal.getsignal(number) for number, _, _ in ENDINGS}
    handlers = lambda: {number: signal.getsignal(number) for number in before}
    seen = []

    def prepare(config, parts, train):
        seen.append(handlers() != before)
        train("a reference")
        seen.append(handlers() != before)

    monkeypatch.setattr(run.Session, "open", prepare)
    monkeypatch.setattr(run, "train_to_end", lambda config: seen.append(handlers() == before))
    run._open(read_config("pretrain_tiny"))
    assert seen == [True, True, True] and handlers() == before
