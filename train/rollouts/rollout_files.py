"""The files of episodes in a run directory: trajectories to read, filter and learn from, and the rows that later
updates on a set of episodes need."""

import io
import pathlib
import zipfile
from collections.abc import Collection, Sequence

import numpy as np

from data.trajectories.formats import ours
from maverick_jax.errors import InputError
from maverick_jax.files import write_atomically
from train.rollouts.episode_rows import Row
from train.rollouts.token_episode import TokenEpisode

KEPT_SETS = 8
"""Newest sets whose rows are kept, besides those that checkpoints need."""


def write_episodes(folder: pathlib.Path, number: int, episodes: Sequence[TokenEpisode], group: int) -> None:
    """Writes set `number` as a file of trajectories. Each has its tokens in `extra`, and which of them the model wrote,
    as [begin, end) pairs."""
    lines = []
    for i, episode in enumerate(episodes):
        extra = {"tokens": episode.tokens, "written": _spans(episode.written), "end": str(episode.end),
                 "seed": episode.seed, "learned": episode.learned}  # fmt: skip
        name = f"set-{number}-task-{i // group}-{i % group}"
        if (trajectory := episode.trajectory(name, extra)) is not None:
            lines.append(ours.write(trajectory))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"set-{number:06d}.jsonl", ("\n".join(lines) + "\n").encode())


def _spans(written: Sequence[bool]) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(written, np.int8), [0]])))
    return edges.reshape(-1, 2).tolist()


def write_rows(folder: pathlib.Path, number: int, rows: Row, needed: Collection[int] = ()) -> None:
    """Keeps the rows of set `number`; drops those of sets long before that are not `needed`, and of later ones of a run
    that went back."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **rows)
    write_atomically(_rows_file(folder, number), buffer.getvalue())
    sets = {*range(number - KEPT_SETS + 1, number + 1), *(n for n in needed if n < number)}
    kept = {_rows_file(folder, n).name for n in sets}
    for other in folder.glob("rows-*.npz"):
        if other.name not in kept:
            other.unlink(missing_ok=True)


def read_rows(folder: pathlib.Path, number: int, update: int) -> Row:
    """The rows of set `number`, from which update `update` learns. Raises InputError if they are not there."""
    path = _rows_file(folder, number)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}), and update {update} learns from episodes that earlier "
            "updates have learned from; expected the file, or a run that goes on from the set's first update"
        ) from None


def _rows_file(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"rows-{number:06d}.npz"
