"""The environment file: every flag has a reason, and XLA knows its flags."""

import os
import subprocess
import sys

import pytest

from launch.clusters.environment import all_flags, exports, variables

PLATFORMS = ("cpu", "cuda", "tpu")


def test_every_flag_has_a_reason_and_says_what_was_checked():
    assert len(all_flags()) > 5
    for flag in all_flags():
        assert flag.platform in PLATFORMS[1:]
        assert len(flag.why) > 20 and len(flag.checked) > 10, flag
    assert variables("cpu") == {} and exports("cpu") == ""


def test_flags_of_xla_are_parsed_by_the_installed_compiler():
    """XLA ends a process for a flag that it does not know."""
    flags = [flag.value for flag in all_flags() if flag.variable == "XLA_FLAGS"]
    code = "import jax; jax.numpy.zeros(3).block_until_ready()"
    run = lambda text: subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "XLA_FLAGS": text}, capture_output=True, text=True
    )
    assert flags and (done := run(" ".join(flags))).returncode == 0, done.stderr
    assert "Unknown flag in XLA_FLAGS" in run("--xla_no_such_flag=1").stderr


def test_a_tpu_that_is_not_there_is_an_error():
    env = {**os.environ, "JAX_PLATFORMS": variables("tpu")["JAX_PLATFORMS"]}
    done = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "RuntimeError: Unable to initialize backend" in done.stderr


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_shell_sets_what_is_not_set(platform):
    shown = lambda **given: dict(
        line.split("=", 1)
        for line in subprocess.run(
            ["bash", "-uc", exports(platform) + "\nenv"],
            env={"PATH": os.environ["PATH"], **given},
            capture_output=True,
            text=True,
        ).stdout.splitlines()
    )
    assert variables(platform).items() <= shown().items()
    for name in variables(platform):
        assert shown(**{name: "mine"})[name] == "mine"
