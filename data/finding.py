"""Which files of a path are data: every other file is named, with the reason why it is left out."""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Collection

from data.compression import split_ending
from maverick_jax.errors import InputError, harmless
from maverick_jax.settings.section import did_you_mean

_log = logging.getLogger(__name__)

CARDS = ("readme", "license", "licence", "copying", "notice", "citation", "changelog", "contributing", "authors")
"""Names, without endings, of files about a data set; they are left out at the top of a folder."""
METADATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "metadata.json")
"""Files of that kind which are left out wherever they are."""
SHOWN = 8
"""Most files that a message names."""


@dataclasses.dataclass(frozen=True)
class FoundFiles:
    """The files at a path."""

    root: pathlib.Path
    """The folder to which names are relative."""
    files: list[pathlib.Path]
    """Files of data, sorted."""
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name -> why it is not read; the name of a folder ends in `/`."""

    def say(self, where: str) -> None:
        """Logs what is left out, once for a process."""
        if self.left_out:
            _say(f"{where}: files read: {len(self.files):,}; left out: {listed(self.left_out)}")


@functools.cache
def _say(message: str) -> None:
    _log.warning("%s", harmless(message))


def listed(left_out: dict[str, str]) -> str:
    """The first files that are left out, and the number of the others, for a message."""
    shown = [f"{name} ({why})" for name, why in list(left_out.items())[:SHOWN]]
    return ", ".join(shown) + (f", and {len(left_out) - SHOWN:,} more" if len(left_out) > SHOWN else "")


def find_files(path: pathlib.Path, where: str, endings: Collection[str], compressed: Collection[str]) -> FoundFiles:
    """The files at `path`: the file itself, whatever its name, or what a folder has, at any depth, with one of
    `endings`, or one of `compressed` before the ending of a compression. `where` begins messages. Raises InputError if
    there is none."""
    if path.is_file():
        return FoundFiles(path.parent, [path])
    if not path.is_dir():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise InputError(f"{where}: no such file or folder (looked in {path.parent.absolute()}){near}")
    found = _search(path, endings, compressed)
    if not found.files:
        others = f"; it has {listed(found.left_out)}" if found.left_out else ""
        raise InputError(f"{where}: the folder contains no file that ends in {', '.join(sorted(endings))}{others}")
    return found


def _search(folder: pathlib.Path, endings: Collection[str], compressed: Collection[str]) -> FoundFiles:
    files, left_out = [], {}

    def unreadable(error: OSError) -> None:
        left_out[f"{_name(pathlib.Path(error.filename), folder)}/"] = f"cannot be read: {error.strerror}"

    for place, inner, names in os.walk(folder, onerror=unreadable):
        here = pathlib.Path(place)
        for name in list(inner):
            if why := _why_not_folder(here / name):
                left_out[f"{_name(here / name, folder)}/"] = why
                inner.remove(name)
        for name in names:
            path = here / name
            if why := _why_not(path, here == folder, endings, compressed):
                left_out[_name(path, folder)] = why
            else:
                files.append(path)
    return FoundFiles(folder, sorted(files), dict(sorted(left_out.items())))


def _name(path: pathlib.Path, folder: pathlib.Path) -> str:
    return path.relative_to(folder).as_posix()


def _why_not_folder(path: pathlib.Path) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    return "a link to a folder; to read it, give its path too" if path.is_symlink() else None


def _why_not(path: pathlib.Path, at_top: bool, endings: Collection[str], compressed: Collection[str]) -> str | None:
    """Why a file of a folder is no data; None: it is."""
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "a link that leads nowhere" if path.is_symlink() else "not a regular file"
    if _is_card(path, at_top):
        return "about the data"
    ending, compression = split_ending(path)
    if compression is not None and ending not in compressed:
        return f"compressed {ending or 'file without another ending'}, which is not read"
    if compression is None and ending not in endings:
        hint = "; JSON lines end in .jsonl, or are named in `path`" if ending == ".json" and ".jsonl" in endings else ""
        return f"an ending that is not read{hint}" if ending else "no ending"
    return None


def _is_card(path: pathlib.Path, at_top: bool) -> bool:
    """Whether a file is about the data: by its name at the top of the folder, as a data set's card anywhere, which
    begins with YAML between lines of `---`."""
    if path.name.lower() in METADATA:
        return True
    if path.name.lower().partition(".")[0] not in CARDS:
        return False
    if at_top:
        return True
    try:
        with path.open("rb") as file:
            return file.read(4).rstrip() == b"---"
    except OSError:
        return False
