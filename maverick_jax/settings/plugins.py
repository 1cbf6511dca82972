"""Plugins: modules that add members to the unions of `maverick_jax.settings.kinds` when they are imported.

An installed package names a module under the entry point group `maverick_jax.plugins`, or a config lists modules under
`plugins`. Only the config that a user runs can name modules; checkpoints, data files and exported folders cannot.
"""

import importlib
import importlib.metadata
import logging
import re
import sys
from collections.abc import Iterable

from maverick_jax.errors import InputError

GROUP = "maverick_jax.plugins"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

log = logging.getLogger(__name__)


def load_installed() -> list[str]:
    """Imports the modules that installed packages name. Returns the newly imported ones. Raises InputError if an import
    fails."""
    entries = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name)
    where = lambda entry: f"entry point {entry.name!r} of {entry.dist.name if entry.dist else 'a package'}"
    return [entry.value for entry in entries if _load(entry.value, where(entry))]


def load(modules: Iterable[str]) -> list[str]:
    """Imports the modules of a config's `plugins`. Returns the newly imported ones. Raises InputError for a text that
    is not a module name, and if an import fails."""
    if isinstance(modules, str):
        raise InputError(f"plugins: must be a list of module names, got {modules!r}")
    for module in modules:
        if not isinstance(module, str) or not _MODULE.fullmatch(module):
            raise InputError(f"plugins: {module!r} is not a module name such as `my_package.objectives`")
    return [module for module in modules if _load(module, "plugins")]


def _load(module: str, where: str) -> bool:
    if module in sys.modules:
        return False
    try:
        importlib.import_module(module)
    except Exception as error:
        root = module.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name in (root, module)
        hint = f" (install the package {root}, or put the folder that holds it on PYTHONPATH)" if absent else ""
        raise InputError(f"{where}: cannot import {module}: {type(error).__name__}: {error}{hint}") from error
    log.info("loaded plugin %s", module)
    return True
