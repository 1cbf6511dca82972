"""One rule for all launchers: which codes count, and what they mean."""

import signal

import pytest

from launch.clusters.exit_codes import NEVER, RESTART, SIGNALS, SUSPECTED_HARDWARE, job_code, process_code, reason
from maverick_jax import errors


@pytest.mark.parametrize(
    ("returned", "code"),
    [(0, 0), (75, 75), (1, 1), (130, 130), (134, 76), (137, 76), (143, 76), (139, 76), (-9, 76), (-15, 76), (-6, 76)],
)
def test_a_process_that_a_signal_ended_lost_or_was_lost(returned, code):
    assert process_code(returned) == code


@pytest.mark.parametrize(
    ("by_process", "code"), [((0, 0), 0), ((75, 75), 75), ((78, 76), 78), ((76, 1), 1), ((79, 76), 79), ((80, 76), 80)]
)
def test_a_job_ends_with_the_code_of_the_process_that_failed_first(by_process, code):
    assert job_code(by_process) == code


def test_every_code_of_an_error_has_one_rule():
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MaverickError)
    ]
    codes = {kind.exit_code for kind in kinds} | {errors.INTERRUPTED, 77, 80}
    assert codes == {*RESTART, *NEVER, SUSPECTED_HARDWARE}
    assert not set(RESTART) & NEVER.keys()
    assert all(reason(code) != "unknown" for code in codes)
    assert reason(3) == "unknown"


def test_the_signals_are_named_by_the_platform():
    names = (signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)
    assert sorted(names) == list(SIGNALS)
