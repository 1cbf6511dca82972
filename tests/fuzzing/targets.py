"""Everything that reads foreign data, as targets."""

import pathlib
import tempfile

from tests.fuzzing import folders, pictures, runs, texts
from tests.fuzzing.harness import Target

MAKERS = {
    "folder": folders.folder_target,
    "config": folders.config_target,
    "generation": folders.generation_target,
    "checkpoint": folders.checkpoint_target,
    "tokenizer": texts.tokenizer_target,
    "ranks": texts.ranks_target,
    "image": lambda scratch: texts.image_target(),
    "chat": lambda scratch: texts.chat_target(),
    "calls": lambda scratch: texts.calls_target(),
    "yaml": texts.yaml_target,
    "runs": runs.runs_target,
    "pictures": pictures.pictures_target,
}

WEIGHTS = dict(zip(MAKERS, (4, 2, 1, 4, 2, 1, 2, 3, 2, 3, 3, 3), strict=True))
"""Shares of the time."""


def make(name: str, scratch: pathlib.Path) -> Target:
    """The target `name`, whose files lie in `scratch`."""
    place = scratch / name
    place.mkdir()
    return MAKERS[name](place)


def scratch_folder() -> tempfile.TemporaryDirectory:
    """Where examples are written: in memory, where there is such a place."""
    memory = pathlib.Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="maverick-fuzz-", dir=memory if memory.is_dir() else None)
