"""Batches of episodes that the current model plays, for reinforcement learning.

A set of episodes serves `passes * minibatches` updates. It is a pure function of the weights before its first update,
the run's seed and the number of its first batch, so that a run that is killed there plays it again, and one that goes
back to an earlier checkpoint plays another. What later updates on it need is kept in the run directory, in `rollouts/`,
so that a run goes on to the bit from any update.
"""

import collections
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from data.environments import EnvironmentConfig
from maverick_jax import parameters
from maverick_jax.accounting.flops import forward_flops_per_token
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.accounting.serving import slot_bytes, state_bytes
from maverick_jax.checkpoint.folder import steps_in
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.inference.engine import SlotEngine
from maverick_jax.model_source import CHECKPOINTS
from train.rollouts import rollout_files
from train.rollouts.episode_rows import EpisodeRows, Row, loss_shares
from train.rollouts.playing import Playing
from train.rollouts.settings import RolloutSettings
from train.rollouts.source import Batch, BatchSource, Setting
from train.rollouts.token_episode import End, TokenEpisode

log = logging.getLogger(__name__)

LOST_SETS = 3
"""Sets in a row in which every environment failed, after which a run ends."""


class Learner(Protocol):
    """What an objective says of the learning from episodes."""

    rollouts: RolloutSettings
    environments: dict[str, EnvironmentConfig]

    @property
    def scores_first(self) -> bool:
        """Whether the model looks at a set's rows before the first update on it."""
        ...

    def group_advantages(self, rewards: np.ndarray) -> np.ndarray:
        """Advantages of one group, float32[n], from its rewards."""
        ...

    def credited(self, rewards: np.ndarray, violated: np.ndarray, state: Mapping[str, Any]) -> np.ndarray:
        """What is learned from, float32[n]: the environments' rewards of episodes, and what those lose that break a
        rule (bool[n]). `state`: the objective's."""
        ...

    def loss_mean(self) -> tuple[str, bool]:
        """What the loss is a mean of, and whether groups of equal rewards are left out."""
        ...

    def score(self, model: Any, heads: Any, batch: Batch) -> dict[str, jax.Array]:
        """`old_log_probs` and `old_values` of a batch's labels, float32[A, b, T], and `routes` of its tokens where they
        are replayed; a program."""
        ...

    def estimated(self, rewards: np.ndarray, values: np.ndarray, rows: EpisodeRows) -> Row | None:
        """`advantages` and `returns`, [R, T], of values and of rewards per label; None: of groups alone."""
        ...


@dataclasses.dataclass(frozen=True)
class PolicyBatchMaker:
    """The maker of a run's batches from episodes."""

    learner: Learner

    def open(self, data: BatchSource, setting: Setting) -> "PolicyBatches":
        return PolicyBatches(self.learner, setting)

    def flops_per_token(self, model: ModelConfig, sequence_length: int) -> float:
        """A forward pass of each token by the engine, and another one if sets are scored, as if all rows were full."""
        settings, passes = self.learner.rollouts, 1 + self.learner.scores_first
        return passes * forward_flops_per_token(model, settings.max_tokens) / settings.passes

    def bytes_per_device(self, model: ModelConfig, layout: Layout) -> int:
        """The engine's copy of the weights, its slots, and the texts that it keeps between turns."""
        settings = self.learner.rollouts
        slots = min(settings.slots, settings.episodes)
        keys = slots * slot_bytes(model, settings.max_tokens) // layout.parts(("batch", "kv_heads"))
        kept = min(settings.keep_bytes, settings.episodes * slot_bytes(model, settings.max_tokens))
        weights = layout.stored(parameters.of_model(model)) * BYTES[model.param_dtype]
        return weights + keys + slots * state_bytes(model) // layout.parts(("batch",)) + kept


class PolicyBatches(BatchSource):
    """The batches of a run. The engine starts with the first one."""

    def __init__(self, learner: Learner, setting: Setting):
        self._learner, self._setting, self._settings = learner, setting, learner.rollouts
        self._playing = Playing(learner.rollouts, learner.environments, setting.tokenizer, setting.seed)
        self._engine: SlotEngine | None = None
        self._score = jax.jit(learner.score)
        self._set, self._rows, self._metrics = -1, {}, {}
        self._lost, self._began, self._made = 0, 0.0, 0.0
        self._folder = setting.folder / "rollouts"

    def __call__(self, update: int, state: Any) -> Batch:
        number, part = divmod(update - 1, self._settings.updates)
        if part == 0:
            self._rows, self._metrics = self._played(number, state)
        elif number != self._set:
            self._rows, self._metrics = rollout_files.read_rows(self._folder, number, update), {}
        else:
            self._metrics = {}
        self._set = number
        size = len(self._rows["tokens"]) // self._settings.minibatches
        begin = part % self._settings.minibatches * size
        rows = {name: x[begin : begin + size] for name, x in self._rows.items()}
        if part == 0:  # the model is the one that wrote the episodes
            rows |= {"old_log_probs": np.full_like(rows["old_log_probs"], np.inf)}
        return self._setting.place(rows)

    def metrics(self) -> Mapping[str, Any]:
        return self._metrics

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    # ---- a set of episodes -----------------------------------------------------------------------------------------

    def _played(self, number: int, state: Any) -> tuple[Row, dict[str, Any]]:
        """Plays set `number`. Returns its rows and its metrics."""
        jax.block_until_ready(state)
        began = time.perf_counter()
        model = self._setting.model_of(state)
        first = self._setting.batch_of(number * self._settings.updates + 1)
        episodes = self._playing.play(self._with_weights(model), first)
        played = time.perf_counter()
        self._require_environments(episodes)
        rows = self._with_credit(episodes, model, state)
        if self._settings.updates > 1:
            rollout_files.write_rows(self._folder, number, rows, self._begun_at_checkpoints())
        every = self._settings.write_every
        if every and number % every == 0:
            rollout_files.write_episodes(self._folder, number, episodes, self._settings.group)
        made = time.perf_counter()
        found = figures(episodes, self._settings.group) | self._shares(episodes, began, played)
        self._began, self._made = began, made
        return rows, found

    def _begun_at_checkpoints(self) -> set[int]:
        """The sets in the middle of which the run would go on from one of its checkpoints."""
        steps, updates = steps_in(self._setting.folder / CHECKPOINTS), self._settings.updates
        return {step // updates for step in steps if step % updates}

    def _with_weights(self, model: Any) -> SlotEngine:
        """The engine with the weights of `model`."""
        if self._engine is None:
            self._engine = SlotEngine(model, self._setting.tokenizer, self._settings.engine)
        self._engine.load(model)
        return self._engine

    def _require_environments(self, episodes: Sequence[TokenEpisode]) -> None:
        """Raises InputError if every episode of several sets has failed, none of them by the model."""
        failed = [episode for episode in episodes if episode.end is End.FAILED]
        if failed:
            why = collections.Counter(episode.outcome.termination for episode in failed).most_common(1)[0][0]
            log.warning("%d of %d episodes failed in their environment, such as: %s", len(failed), len(episodes), why)
        self._lost = self._lost + 1 if len(failed) == len(episodes) else 0
        if self._lost == LOST_SETS:
            why = failed[0].outcome.termination
            raise InputError(f"objective.environments: all episodes of {LOST_SETS} sets failed there, such as: {why}")

    def _with_credit(self, episodes: Sequence[TokenEpisode], model: Any, state: Any) -> Row:
        """The rows of episodes with everything that the loss reads."""
        s, learner = self._settings, self._learner
        T = self._setting.batch["tokens"].shape[-1]
        rows = EpisodeRows.of(episodes, T, T // s.max_tokens)
        rewards = np.array([episode.reward for episode in episodes], np.float32)
        violated = np.array([bool(episode.violations()) for episode in episodes])
        rewards = learner.credited(rewards, violated, state.objective)
        advantages, differ = self._advantages(episodes, rewards)
        how, drop = learner.loss_mean()
        counts = np.array([episode.learned for episode in episodes]) & (differ | (not drop))
        zeros = np.zeros(rows.owner.shape, np.float32)
        parts = np.split(rows.owner, s.minibatches)
        shares = np.concatenate([loss_shares(part, counts, how, s.max_tokens) for part in parts])
        found = rows.fields | {"loss_weights": shares, "advantages": rows.spread(advantages), "old_values": zeros}
        found |= {"old_log_probs": zeros, "returns": zeros}
        sound = np.array([episode.end is not End.FAILED for episode in episodes])
        rate = float(np.mean(violated[sound])) if sound.any() else 0.0
        found |= {"violation_rate": np.full(len(zeros), rate, np.float32)}
        unscored = {name: x for name, x in self._setting.batch.items() if name not in found}  # until `_scored`
        found |= {name: np.zeros((*zeros.shape, *x.shape[3:]), x.dtype) for name, x in unscored.items()}
        if learner.scores_first:
            scored = self._scored(found, model, state)
            values = scored["old_values"]
            found |= scored | {name: scored[name] * rows.mask for name in ("old_log_probs", "old_values")}
            found |= learner.estimated(rows.spread(rewards) * rows.last, values, rows) or {}
        return found

    def _advantages(self, episodes: Sequence[TokenEpisode], rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per episode, float32[n] and bool[n]: its advantage, and whether its group's rewards differ. Episodes whose
        environment failed count in no group."""
        advantages, differ = np.zeros_like(rewards), np.zeros(rewards.shape, bool)
        for first in range(0, len(rewards), self._settings.group):
            group = [i for i in range(first, first + self._settings.group) if episodes[i].end is not End.FAILED]
            if group and (len(group) > 1 or self._settings.group == 1):
                advantages[group] = self._learner.group_advantages(rewards[group])
                differ[group] = np.ptp(rewards[group]) > 0
        return advantages, differ

    def _scored(self, rows: Row, model: Any, state: Any) -> Row:
        """What `Learner.score` finds of all rows, [R, T, ...], by the model before the first update."""
        found = []
        size = len(rows["tokens"]) // self._settings.minibatches
        for begin in range(0, len(rows["tokens"]), size):
            batch = self._setting.place({name: x[begin : begin + size] for name, x in rows.items()})
            found.append(jax.device_get(self._score(model, state.heads, batch)))
        flat = lambda x: np.asarray(x).reshape(-1, *x.shape[2:])
        return {name: np.concatenate([flat(part[name]) for part in found]) for name in found[0]}

    def _shares(self, episodes: Sequence[TokenEpisode], began: float, played: float) -> dict[str, Any]:
        """Where time goes: seconds of sampling, and of environments (summed over episodes, beside it); and the share
        of sampling in the time since the set before."""
        found = {"sampling_seconds": played - began, "environment_seconds": sum(e.seconds for e in episodes)}
        if self._began:
            found["sampling_share"] = (self._made - self._began) / (began - self._began)
        return {name: np.float64(value) for name, value in found.items()}


def figures(episodes: Sequence[TokenEpisode], group: int) -> dict[str, Any]:
    """Metrics of a set of episodes; docs/guides/alignment.md says what each is."""
    sound = [episode for episode in episodes if episode.end is not End.FAILED] or episodes
    rewards = np.array([episode.reward for episode in episodes], np.float64).reshape(-1, group)
    mean = lambda values: np.float64(np.mean(list(values)))
    share = lambda end: mean(episode.end is end for episode in episodes)
    written = [sum(episode.written) for episode in sound]
    calls = sum(episode.calls for episode in sound)
    return _of_rules(sound) | {
        "success": mean(bool(episode.outcome.success) for episode in sound),
        "reward": mean(episode.reward for episode in sound),
        "reward_std": np.float64(np.std([episode.reward for episode in sound])),
        "equal_groups": np.float64(np.mean(np.ptp(rewards, axis=1) == 0)),
        "episode_tokens": mean(len(episode.tokens) for episode in sound),
        "written_tokens": mean(written),
        "turns": mean(episode.turns for episode in sound),
        "calls": np.float64(calls / len(sound)),
        "call_errors": np.float64(sum(episode.errors for episode in sound) / max(calls, 1)),
        "malformed": np.float64(sum(e.malformed for e in sound) / max(sum(e.turns for e in sound), 1)),
        "cut": share(End.CUT),
        "out_of_turns": share(End.TURNS),
        "environment_failures": share(End.FAILED),
    }


def _of_rules(episodes: Sequence[TokenEpisode]) -> dict[str, Any]:
    """Metrics of the episodes that have rules; none without any."""
    ruled = [episode for episode in episodes if episode.rules is not None]
    if not ruled:
        return {}
    calls = sum(episode.calls for episode in ruled)
    broken = sum(bool(episode.violations()) for episode in ruled)
    return {
        "violations": np.float64(broken / len(ruled)),
        "held_back": np.float64(sum(episode.held for episode in ruled) / max(calls, 1)),
    }
