"""Array files of tokenized conversations, written from their beginning."""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import BinaryIO, Self

import numpy as np

from data.array_folder import array_file
from maverick_jax.text import Tokenizer


def identity_of(path: pathlib.Path) -> list[str | int]:
    """Values that change whenever the file may have changed."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


class ColumnFiles:
    """Array files in `folder`: `tokens`, `offsets`, which begin with 0, and `others`, by name. Used in a `with`."""

    def __init__(self, folder: pathlib.Path, tokenizer: Tokenizer, others: Mapping[str, np.dtype]):
        self.folder, self.tokenizer = folder, tokenizer
        token = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.dtypes: dict[str, np.dtype] = {"tokens": token, "offsets": np.dtype("<i8"), **others}

    def __enter__(self) -> Self:
        self._open = contextlib.ExitStack()
        opened = lambda name: self._open.enter_context(array_file(self.folder, name).open("wb"))
        self._files: dict[str, BinaryIO] = {name: opened(name) for name in self.dtypes}
        self.write(offsets=[0])
        return self

    def __exit__(self, *error) -> None:
        self._open.close()

    def write(self, **columns) -> None:
        """Appends values to the arrays of these names."""
        for name, values in columns.items():
            self._files[name].write(np.asarray(values, self.dtypes[name]).data)
