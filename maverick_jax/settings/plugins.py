"""Packages of a user's that add to the unions of `maverick_jax.settings.kinds` by being imported.

An installed package names a module under the entry point group `maverick_jax.plugins`, or a config lists modules under
`plugins`. Only the config that a user runs is asked: no checkpoint, data file or exported folder names code.
"""

import importlib
import importlib.metadata
import logging
import re
from collections.abc import Iterable

from maverick_jax.errors import InputError

GROUP = "maverick_jax.plugins"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

log = logging.getLogger(__name__)


def load_installed() -> None:
    """Imports the modules that installed packages name. Raises InputError where one fails."""
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
        _load(entry.value, f"entry point {entry.name!r} of {entry.dist.name if entry.dist else 'a package'}")


def load(modules: Iterable[str]) -> None:
    """Imports the modules of a config's `plugins`. Raises InputError where one is no module name or fails."""
    for module in modules:
        if not isinstance(module, str) or not _MODULE.fullmatch(module):
            raise InputError(f"plugins: {module!r} is no module name; expected one such as `my_package.objectives`")
        _load(module, "plugins")


def _load(module: str, where: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:
        raise InputError(f"{where}: cannot import {module}: {type(error).__name__}: {error}") from error
    log.info("loaded plugin %s", module)
