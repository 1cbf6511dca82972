"""The arrays of tokenized trajectories, written one trajectory after the other."""

import pathlib

import numpy as np

from data.cache.column_files import ColumnFiles
from data.trajectories.decisions import Decision, choices, count
from data.trajectories.kinds import token_kinds
from data.trajectories.trajectory import Outcome, Trajectory
from data.trajectories.weights import own_weights
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Kind, Rendered, Role
from maverick_jax.text.chat.render import HEADER_START


class RunColumns(ColumnFiles):
    """Writes the arrays of `tokenize_trajectories`, from their beginning: `with RunColumns(folder, tokenizer) as
    columns`."""

    def __init__(self, folder: pathlib.Path, tokenizer: Tokenizer, more: dict[str, np.dtype] | None = None):
        """`more`: further arrays and their dtypes."""
        whole = np.dtype("<i8")
        of_tokens = {"kinds": np.dtype("u1"), "choices": np.dtype("u1"), "own": np.dtype("<f4"), "turns": whole}
        of_runs = {"context": whole, "success": np.dtype("i1"), "reward": np.dtype("<f8"), "tools": whole}
        super().__init__(folder, tokenizer, {**of_tokens, **of_runs, "decisions": whole, **(more or {})})
        self.tokens = self.trajectories = 0

    def add(self, trajectory: Trajectory, rendered: Rendered) -> None:
        """Appends a trajectory."""
        kinds = token_kinds(trajectory, rendered)
        begin, outcome = self.tokens, trajectory.outcome
        self.tokens += rendered.ids.size
        self.trajectories += 1
        turns = [span.begin for span in rendered.spans if span.kind is Kind.CONTROL and span.text == HEADER_START.name]
        own = own_weights(trajectory, rendered, kinds)
        self.write(tokens=rendered.ids, offsets=[self.tokens], kinds=kinds, own=own, turns=[begin + t for t in turns])
        decided = choices(trajectory, rendered, self.tokenizer)
        self.write(choices=decided, decisions=count(decided), tools=[len(trajectory.tools)])
        self.write(context=[_context(rendered, turns)], success=[_success(outcome)], reward=[_reward(outcome)])

    def add_document(self, ids: np.ndarray, kinds: np.ndarray, turns: list[int]) -> None:
        """Appends a text with kinds of its own, and with places where it may be cut."""
        self._documents(ids, kinds, np.array([ids.size]), np.array(turns))

    def add_documents(self, ids: np.ndarray, kinds: np.ndarray, lengths: np.ndarray) -> None:
        """Appends texts of `lengths` tokens with kinds of their own, which are not cut."""
        self._documents(ids, kinds, lengths, np.cumsum(lengths) - lengths)

    def _documents(self, ids: np.ndarray, kinds: np.ndarray, lengths: np.ndarray, turns: np.ndarray) -> None:
        """`turns`: places among `ids` where a text may be cut, beginnings of texts among them."""
        n, begin = lengths.size, self.tokens
        self.tokens += ids.size
        self.trajectories += n
        self.write(tokens=ids, offsets=begin + np.cumsum(lengths), kinds=kinds, own=np.full(ids.size, np.nan))
        self.write(choices=np.zeros(ids.size), turns=begin + turns, decisions=[0] * (n * len(Decision)))
        self.write(context=[0] * n, tools=[0] * n, success=[-1] * n, reward=[np.nan] * n)


def _context(rendered: Rendered, turns: list[int]) -> int:
    """Number of tokens up to the end of the last turn that is a system message or declares tools; 0 if none does."""
    is_context = (rendered.roles == Role.SYSTEM) | (rendered.kinds == Kind.TOOLS)
    if not is_context.any():
        return 0
    last = int(np.flatnonzero(is_context)[-1])
    return next((turn for turn in turns if turn > last), 0)  # a context without a turn after it does not count


def _success(outcome: Outcome) -> int:
    return -1 if outcome.success is None else int(outcome.success)


def _reward(outcome: Outcome) -> float:
    return np.nan if outcome.reward is None else outcome.reward
