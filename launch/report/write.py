"""`maverick report`: of one run, or of several compared."""

import pathlib
from collections.abc import Sequence

from launch.report.comparison import compare
from launch.report.page import report
from launch.report.sample import write_sample
from maverick_jax.errors import InputError


def write_report(run_dirs: Sequence[str], prompt: str | None, max_tokens: int) -> pathlib.Path:
    """Writes the page and returns its path. prompt: text that the newest checkpoint of one run continues first.

    Raises InputError if a directory is no run, and for a prompt with several runs.
    """
    if len(run_dirs) > 1:
        if prompt is not None:
            raise InputError("--prompt: a sample is of one run; expected one RUN_DIR")
        return compare(run_dirs)
    if prompt is not None:
        write_sample(run_dirs[0], prompt, max_tokens)
    return report(run_dirs[0])
