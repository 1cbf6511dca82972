"""Plays a set of episodes with an engine, as many at a time as it has slots, environments in threads beside it."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable

from data.environments import EnvironmentConfig
from data.policy import ToolPolicy, read_policy
from maverick_jax.inference import Sampling
from maverick_jax.inference.engine import Finish, Generation, GenerationRequest
from maverick_jax.inference.engine.requests import Engine
from maverick_jax.inference.prompts import stop_ids
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import dialect_of
from train.rollouts.guarded import EnvironmentFailed, GuardedEnvironment
from train.rollouts.settings import RolloutSettings, derived, environment_of
from train.rollouts.token_episode import EpisodeLimits, TokenEpisode

TASK, WORDS = 0, 1
"""Mixed into seeds: of tasks, and of what the model writes."""


@dataclasses.dataclass(frozen=True)
class Playing:
    """What the episodes of a run have in common."""

    settings: RolloutSettings
    environments: dict[str, EnvironmentConfig]
    tokenizer: Tokenizer
    seed: int

    def play(self, engine: Engine, number: int) -> list[TokenEpisode]:
        """The episodes of a set, by group. They depend on the engine's weights, the seed and the set's number alone:
        every token is drawn with the key of (seed, set, episode, turn, place)."""
        s = self.settings
        with concurrent.futures.ThreadPoolExecutor(s.episodes, thread_name_prefix="episode") as threads:
            opening = [threads.submit(self._open, number, i) for i in range(s.episodes)]
            opened: list[TokenEpisode] = []
            begun: list[Generation | None] = []
            for first in range(0, s.episodes, s.group):  # the engine begins while other groups are opened
                opened += (found.result() for found in opening[first : first + s.group])
                begun += self._begin(engine, number, first, opened[first:])
            play = lambda i: self._through(engine, number, i, opened[i], begun[i])
            for _ in threads.map(play, range(s.episodes)):
                pass
        return opened

    def _open(self, number: int, i: int) -> TokenEpisode:
        s, group = self.settings, i // self.settings.group
        config = environment_of(self.environments, number * s.prompts + group)
        limits = EpisodeLimits(s.max_tokens, s.turn_tokens, config.max_turns, s.learn_from_cut, s.gate)
        seed, dialect = derived(self.seed, TASK, number, group), dialect_of(s.dialect, self.tokenizer).name
        rules = None if config.policy is None else self._rules[config.policy]
        return TokenEpisode(self._guarded(config.make), self.tokenizer, dialect, limits, seed, rules)

    @functools.cached_property
    def _rules(self) -> dict[str, ToolPolicy]:
        """The policies of environments, by path."""
        return {c.policy: read_policy(c.policy) for c in self.environments.values() if c.policy is not None}

    def _guarded(self, make: Callable) -> GuardedEnvironment:
        s = self.settings
        limits = {"time_limit": s.time_limit, "most_characters": s.result_characters}
        try:
            return GuardedEnvironment(make, **limits)
        except EnvironmentFailed as error:
            why = str(error)
        return GuardedEnvironment(lambda: UnmadeEnvironment(why), **limits)

    def _begin(self, engine: Engine, number: int, first: int, group: list[TokenEpisode]) -> list[Generation | None]:
        """The first messages of a group, whose prompt is computed once."""
        going = [i for i, episode in enumerate(group) if episode.end is None]
        found: list[Generation | None] = [None] * len(group)
        if len(going) == len(group) and all(episode.tokens == group[0].tokens for episode in group):
            found[:] = engine.submit(self._request(number, first, group[0]), len(group))
            return found
        for i in going:
            (found[i],) = engine.submit(self._request(number, first, group[i], i))
        return found

    def _request(self, number: int, i: int, episode: TokenEpisode, more: int = 0) -> GenerationRequest:
        """The next message of episode `i`, or of the `more`-th after it in a group that begins alike."""
        s = self.settings
        seed = (derived(self.seed, WORDS, number, i, episode.turns) + more) % 2**32
        return GenerationRequest(
            list(episode.tokens), episode.room, Sampling(s.temperature), seed, stop_ids(self.tokenizer), log_probs=0,
            realm=f"{number}-{i // s.group}",
        )  # fmt: skip

    def _through(self, engine: Engine, number: int, i: int, episode: TokenEpisode, begun: Generation | None) -> None:
        """Plays an episode to its end."""
        while episode.end is None:
            generation = begun or engine.submit(self._request(number, i, episode))[0]
            begun, answer = None, generation.result()
            if answer.finish is Finish.CANCELLED:
                raise RuntimeError("the engine cancelled a message of an episode")
            episode.take(answer.tokens, [score.log_prob for score in answer.scores], answer.finish is Finish.LENGTH)


class UnmadeEnvironment:
    """Stands in the place of an environment that could not be made."""

    name, tools = "broken", ()

    def __init__(self, why: str):
        self.why = why

    def reset(self, seed: int):
        raise EnvironmentFailed(self.why)

    def step(self, message):
        raise EnvironmentFailed(self.why)
