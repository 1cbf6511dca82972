"""Files that are made whole or not at all, and never over one that is there."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import TextIO

from maverick_jax.errors import InputError


@contextlib.contextmanager
def new_file(path: str | pathlib.Path) -> Iterator[TextIO]:
    """A text file to write, which has its name once the block has ended well, and else is gone.

    Raises InputError, before anything is written and again before it gets its name, for a `path` that is there.
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
    """Raises InputError unless `target` can be made."""
    if target.exists() or target.is_symlink():
        raise InputError(f"{target}: is there already; nothing is overwritten")
    if not target.parent.is_dir():
        raise InputError(f"{target}: no such folder: {target.parent}")
