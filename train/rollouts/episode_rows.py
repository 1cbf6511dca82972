"""Episodes as rows of tokens, and the credit that their tokens get."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

Row = dict[str, np.ndarray]


class TokenSequence(Protocol):
    """What a row needs of an episode."""

    tokens: list[int]
    written: list[bool]
    log_probs: list[float]

    @property
    def learned(self) -> bool: ...


@dataclasses.dataclass(frozen=True)
class EpisodeRows:
    """Rows [R, T] with the tokens of episodes."""

    fields: Row
    """`tokens`, `labels`, `positions`, `segment_ids` and `sampled_log_probs`."""
    owner: np.ndarray
    """int32[R, T]: the episode of each label that is learned from; -1 elsewhere."""
    last: np.ndarray
    """bool[R, T]: the last label of each episode that is learned from."""

    @classmethod
    def of(cls, episodes: Sequence[TokenSequence], length: int, each: int) -> "EpisodeRows":
        """`each` episodes in a row of `length` tokens, in order; each begins where the one before it ends."""
        rows = len(episodes) // each
        ints = lambda fill: np.full((rows, length), fill, np.int32)
        tokens, labels, positions, segments, owner = ints(0), ints(0), ints(0), ints(0), ints(-1)
        sampled, last = np.zeros((rows, length), np.float32), np.zeros((rows, length), bool)
        for row in range(rows):
            begin = 0
            for i in range(each):
                number = row * each + i
                episode = episodes[number]
                n = len(episode.tokens)
                here = slice(begin, begin + n)
                tokens[row, here], positions[row, here] = episode.tokens, np.arange(n)
                segments[row, here] = i + 1
                if n > 1:
                    before = slice(begin, begin + n - 1)
                    labels[row, before] = episode.tokens[1:]
                    written = np.asarray(episode.written[1:], bool) & episode.learned
                    owner[row, before] = np.where(written, number, -1)
                    sampled[row, before] = np.where(written, episode.log_probs[1:], 0)
                    if written.any():
                        last[row, begin + int(np.flatnonzero(written)[-1])] = True
                begin += n
        fields = {"tokens": tokens, "labels": labels, "positions": positions, "segment_ids": segments}
        return cls(fields | {"sampled_log_probs": sampled}, owner, last)

    @property
    def mask(self) -> np.ndarray:
        """float32[R, T]: 1 at the labels that are learned from."""
        return (self.owner >= 0).astype(np.float32)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """float32[R, T]: each episode's value, of `values` [episodes], at its labels; 0 elsewhere."""
        return np.where(self.owner >= 0, values[np.maximum(self.owner, 0)], 0).astype(np.float32)


def loss_shares(owner: np.ndarray, counts: np.ndarray, how: str, most: int) -> np.ndarray:
    """float32[R, T]: each label's share of the loss of an update whose rows have the labels `owner` [R, T] (-1: none):
    the sum of shares times losses is `train.objectives.policy.losses.normalized`. `counts` bool[episodes]: whether the
    mean counts an episode. `most`: of `fixed`, the most tokens of an episode."""
    there = (owner >= 0) & counts[np.maximum(owner, 0)]
    lengths = np.bincount(owner[there], minlength=len(counts)).astype(np.float64)
    sequences = max(np.count_nonzero(lengths), 1)
    per_episode = {
        "token_mean": np.full(len(counts), 1 / max(lengths.sum(), 1)),
        "sequence_mean": 1 / (np.maximum(lengths, 1) * sequences),
        "fixed": np.full(len(counts), 1 / (sequences * most)),
    }[how]
    return np.where(there, per_episode[np.maximum(owner, 0)], 0).astype(np.float32)
