"""Write files that appear only when they are complete, and never overwrite another file."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import TextIO

from maverick_jax.errors import InputError


@contextlib.contextmanager
def new_file(path: str | pathlib.Path) -> Iterator[TextIO]:
    """A text file to write; it is renamed to `path` when the block succeeds, and deleted when it raises.

    Raises InputError if `path` exists, before anything is written and again before the file is renamed.
    """
    target = pathlib.Path(path).expanduser()
    require_new(target)
    unfinished = target.with_name(f".{target.name}.unfinished-{os.getpid()}")
    try:
        with unfinished.open("x", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        require_new(target)
        os.rename(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def require_new(target: pathlib.Path) -> None:
    """Raises InputError if `target` exists or its folder does not."""
    if target.exists() or target.is_symlink():
        raise InputError(f"{target}: already exists; choose another path")
    if not target.parent.is_dir():
        raise InputError(f"{target}: no such folder: {target.parent}")
