"""Rows of episodes: where tokens and labels stand, and shares that make the loss the mean that is asked for."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from train.objectives.policy.losses import normalized
from train.rollouts.episode_rows import EpisodeRows, loss_shares


@dataclasses.dataclass
class Played:
    tokens: list[int]
    written: list[bool]
    log_probs: list[float]
    learned: bool = True


def played(length: int, seed: int, learned: bool = True) -> Played:
    draw = np.random.default_rng(seed)
    written = draw.random(length) < 0.5
    written[0] = False
    return Played(draw.integers(1, 99, length).tolist(), written.tolist(), (-draw.random(length)).tolist(), learned)


EPISODES = [played(5, 0), played(8, 1), played(3, 2, learned=False), played(7, 3), played(1, 4), played(8, 5)]


def test_each_episode_is_a_segment_and_labels_are_its_next_tokens():
    rows = EpisodeRows.of(EPISODES, length=20, each=2)
    fields = rows.fields
    assert fields["tokens"].shape == (3, 20) and set(fields) >= {"labels", "positions", "segment_ids"}
    for number, episode in enumerate(EPISODES):
        row, segment = divmod(number, 2)
        at = np.flatnonzero(fields["segment_ids"][row] == segment + 1)
        n = len(episode.tokens)
        assert fields["tokens"][row, at].tolist() == episode.tokens
        assert fields["positions"][row, at].tolist() == list(range(n))
        assert fields["labels"][row, at].tolist() == [*episode.tokens[1:], 0]
        own = np.array([*episode.written[1:], False]) & episode.learned
        assert (rows.owner[row, at] == np.where(own, number, -1)).all()
        sampled = np.array([*episode.log_probs[1:], 0], np.float32)
        np.testing.assert_array_equal(fields["sampled_log_probs"][row, at], np.where(own, sampled, 0))
        last = np.flatnonzero(rows.last[row, at])
        assert last.tolist() == (np.flatnonzero(own)[-1:].tolist() if own.any() else [])
    assert (rows.spread(np.arange(6) + 1.0)[rows.owner >= 0] == rows.owner[rows.owner >= 0] + 1).all()
    assert (rows.mask == (rows.owner >= 0)).all()


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "fixed"])
def test_shares_sum_to_the_mean(how):
    rows, values = EpisodeRows.of(EPISODES, length=20, each=2), np.random.default_rng(7).normal(size=(3, 20))
    counts = np.array([True, True, True, False, True, True])
    shares = loss_shares(rows.owner, counts, how, most=8)
    padded, mask = np.zeros((6, 20), np.float32), np.zeros((6, 20), np.float32)
    for number in (0, 1, 2, 4, 5):
        at = rows.owner == number
        padded[number, : at.sum()], mask[number, : at.sum()] = values[at], 1
    expected = normalized(jnp.asarray(padded), jnp.asarray(mask), how, most=8)
    assert (shares * values).sum() == pytest.approx(float(expected), abs=1e-6)
    assert (shares[rows.owner == 3] == 0).all()


def test_nothing_to_learn_from_gives_zeros():
    rows = EpisodeRows.of([played(4, 1, learned=False)], length=8, each=1)
    assert not rows.mask.any() and not loss_shares(rows.owner, np.array([True]), "token_mean", 4).any()
