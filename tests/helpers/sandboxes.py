"""Whether programs can be run in sandboxes here."""

import pytest

from data.sandbox import run
from maverick_jax.errors import InputError


def _problem() -> str:
    try:
        run.require()
    except InputError as error:
        return str(error)
    return ""


needs_sandbox = pytest.mark.skipif(bool(_problem()), reason=_problem()[:200] or "they work")
