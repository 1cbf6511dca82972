"""One episode as tokens: what the model writes is never tokenized again, and what the environment says is added as the
tokens that continue the conversation."""

import dataclasses
import enum
import time
from collections.abc import Sequence

from data.guard import Gate, GateVerdict
from data.policy import ToolPolicy, Violation, find_violations
from data.trajectories import Outcome, Provenance, Step, Trajectory
from data.trajectories.trajectory import MAX_LABEL
from maverick_jax.errors import InputError
from maverick_jax.inference.replies import read_reply
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import CallError, Conversation, Message, Role, render
from train.rollouts.episodes import HELD, as_text, refused
from train.rollouts.guarded import EnvironmentFailed, GuardedEnvironment

MALFORMED = "Error: your message could not be read ({reason}). Write it again."


class End(enum.StrEnum):
    """Why an episode ended."""

    OVER = "over"
    """The environment said so."""
    TURNS = "turns"
    """`max_turns` messages of the model."""
    CUT = "cut"
    """No room for more tokens."""
    FAILED = "failed"
    """The environment failed."""


@dataclasses.dataclass(frozen=True)
class EpisodeLimits:
    """The limits of an episode."""

    tokens: int
    turn_tokens: int
    turns: int
    learn_from_cut: bool = False
    gate: bool = False
    """Whether calls that break a rule are held back."""


class TokenEpisode:
    """An episode under way. `take` gets each message of the model, until `end` is set."""

    def __init__(
        self,
        environment: GuardedEnvironment,
        tokenizer: Tokenizer,
        dialect: str,
        limits: EpisodeLimits,
        seed: int,
        rules: ToolPolicy | None = None,
    ):
        """Opens the environment's episode of `seed`. An environment that fails ends the episode at once. `rules`: what
        `violations` finds, and what a gate holds back."""
        self._environment, self._tokenizer, self._dialect, self._limits = environment, tokenizer, dialect, limits
        self.seed, self.task, self.rules = seed, "", rules
        self._gate = Gate(rules, time_limit=None, log=False) if rules is not None and limits.gate else None
        self.tokens: list[int] = []
        self.written: list[bool] = []
        """Per token: whether the model wrote it."""
        self.log_probs: list[float] = []
        """Per token: its log-probability when it was sampled; 0 if the model did not write it."""
        self.steps: list[Step] = []
        self.end: End | None = None
        self.outcome = Outcome(0.0, False)
        self.turns = self.malformed = self.calls = self.errors = self.held = 0
        """Counts; `held`: of calls that the gate held back."""
        self.seconds = 0.0
        """Time that the environment took."""
        began = time.perf_counter()
        try:
            opening = environment.reset(seed)
            self.task, self.steps = opening.task[:MAX_LABEL], list(opening.steps)
            self._add(self._rendered(0))
        except (EnvironmentFailed, InputError) as error:
            self._ended(End.FAILED, str(error))
        self.seconds += time.perf_counter() - began
        if self.end is None and not self.room:
            self._ended(End.CUT, "the prompt leaves no room")

    @property
    def room(self) -> int:
        """Most tokens of the next message."""
        return max(0, min(self._limits.turn_tokens, self._limits.tokens - len(self.tokens)))

    def take(self, tokens: Sequence[int], log_probs: Sequence[float], cut: bool) -> None:
        """Adds a message of the model, with the token that ends it unless it was `cut`, and the environment's
        answer."""
        self.tokens += tokens
        self.log_probs += log_probs
        self.written += [True] * len(tokens)
        self.turns += 1
        if cut:
            text = self._tokenizer.decode(list(tokens), controls=True)
            self.steps.append(Step(Message(Role.ASSISTANT, as_text(text))))
            self._ended(End.CUT, f"no end within {len(tokens)} tokens")
            return
        reply = read_reply(tokens, self._tokenizer, self._dialect)
        begin = len(self.steps) + 1
        if isinstance(reply, CallError):
            self.malformed += 1
            self.steps.append(Step(Message(Role.ASSISTANT, as_text(reply.text))))
            self.steps.append(Step(Message(Role.USER, MALFORMED.format(reason=reply.reason[:200]))))
        else:
            self._act(reply.message())
        if self.end is None and self.turns >= self._limits.turns:
            self._ended(End.TURNS, f"not over after {self.turns} turns")
        if self.end is None:
            self._go_on(begin)

    def _act(self, message: Message) -> None:
        """The environment answers the message. Calls that the gate holds back get errors as their results instead:
        what the model wrote stays in its context, so that it learns to ask, or to leave it."""
        verdict = GateVerdict()
        if self._gate is not None and (run := self.trajectory("", {})) is not None:
            verdict = self._gate.check(run, message)
        self.steps.append(Step(message, extra={HELD: verdict.as_json()} if verdict.words else {}))
        self.calls += len(message.calls)
        if verdict.words:
            self.held += len(message.calls)
            self.steps += refused(message, verdict.words)
            return
        began = time.perf_counter()
        try:
            feedback = self._environment.step(message)
            self.steps += feedback.steps
            self.errors += sum(step.error for step in feedback.steps)
            if feedback.outcome is not None:
                self.end, self.outcome = End.OVER, feedback.outcome
        except EnvironmentFailed as error:
            self._ended(End.FAILED, str(error))
        self.seconds += time.perf_counter() - began

    def _go_on(self, begin: int) -> None:
        """Adds the tokens of the messages from `begin` on, and the header of the model's next one."""
        try:
            more = self._rendered(begin)
        except InputError as error:  # such as more results than calls
            self._ended(End.FAILED, str(error))
            return
        if len(self.tokens) + len(more) >= self._limits.tokens:
            self._ended(End.CUT, "results leave no room")
        else:
            self._add(more)

    def _rendered(self, begin: int) -> list[int]:
        conversation = Conversation([step.message for step in self.steps], self._environment.tools)
        found = render(conversation, self._tokenizer, self._dialect, add_generation_prompt=True, begin=begin)
        return found.ids.tolist()

    def _add(self, tokens: list[int]) -> None:
        self.tokens += tokens
        self.written += [False] * len(tokens)
        self.log_probs += [0.0] * len(tokens)

    def _ended(self, end: End, why: str) -> None:
        self.end, self.outcome = end, Outcome(0.0, False, why[:MAX_LABEL])

    @property
    def learned(self) -> bool:
        """Whether its tokens are learned from."""
        ends = (End.OVER, End.TURNS, *((End.CUT,) if self._limits.learn_from_cut else ()))
        return self.end in ends and any(self.written)

    @property
    def reward(self) -> float:
        return 0.0 if self.outcome.reward is None else self.outcome.reward

    def violations(self) -> list[Violation]:
        """The calls that break a rule, whether or not they were carried out."""
        if self.rules is None or (run := self.trajectory("", {})) is None:
            return []
        return find_violations(run, self.rules)

    def trajectory(self, name: str, extra: dict) -> Trajectory | None:
        """The episode as a trajectory called `name`; None: there is nothing to write."""
        provenance = Provenance(format="rollout", id=name, task=self.task or None)
        try:
            return Trajectory(self.steps, self._environment.tools, self.outcome, provenance, extra)
        except InputError:  # the environment's messages are in an order that a conversation does not have
            return None
