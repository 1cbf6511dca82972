"""Batches of episodes that were not played: random tokens with rewards, several in a row."""

import dataclasses

import numpy as np

from maverick_jax.config import ModelConfig
from train.objectives import Policy
from train.rollouts.episode_rows import EpisodeRows, loss_shares


@dataclasses.dataclass
class MadeUp:
    """An episode of random tokens."""

    tokens: list[int]
    written: list[bool]
    log_probs: list[float]
    reward: float
    learned: bool = True


def made_up(config: ModelConfig, count: int, most: int, seed: int = 0) -> list[MadeUp]:
    """Episodes of 4 to `most` tokens, of which one is not learned from."""
    draw, found = np.random.default_rng(seed), []
    for number in range(count):
        n = int(draw.integers(4, most + 1))
        written = draw.random(n) < 0.6
        written[[0, -1]] = False, True
        tokens, log_probs = draw.integers(0, config.vocab_size, n), -4 + draw.normal(0, 0.2, n)
        found.append(MadeUp(tokens.tolist(), written.tolist(), log_probs.tolist(), float(draw.random() < 0.5),
                            number != count - 1))  # fmt: skip
    return found


def batch_of(
    objective: Policy, episodes: list[MadeUp], length: int, each: int, *, microbatches: int = 1, old: bool = True
) -> dict[str, np.ndarray]:
    """A batch [A, b, length] of `each` episodes a row, with everything that the objective reads. old: with made-up
    log-probabilities of before; else those of the update itself."""
    rows = EpisodeRows.of(episodes, length, each)
    rewards = np.array([episode.reward for episode in episodes], np.float32)
    groups = rewards.reshape(-1, objective.rollouts.group)
    advantages = np.concatenate([objective.group_advantages(group) for group in groups])
    how, _ = objective.loss_mean()
    learned = np.array([episode.learned for episode in episodes])
    draw, most = np.random.default_rng(1), objective.rollouts.max_tokens
    drawn = lambda: draw.normal(0, 0.3, (len(episodes), most)).astype(np.float32)[rows.owner, rows.fields["positions"]]
    before = rows.fields["sampled_log_probs"] + drawn()
    made = {
        "loss_weights": loss_shares(rows.owner, learned, how, objective.rollouts.max_tokens),
        "advantages": rows.spread(advantages),
        "old_log_probs": np.where(rows.owner >= 0, before, 0) if old else np.full_like(before, np.inf),
        "old_values": rows.mask * drawn(),
        "returns": rows.mask * drawn(),
    }
    fields = {name: x for name, x in (rows.fields | made).items() if name in objective.fields()}
    return {name: x.reshape(microbatches, -1, length) for name, x in fields.items()}
