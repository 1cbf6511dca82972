"""Renders and tokenizes a source of pairs into the cache, once, with the kind and the turn of each token.

Config weights are applied when rows are read, so changing them does not re-tokenize.
"""

import collections
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from data.array_folder import ArrayFolder, build_once, seal
from data.cache.column_files import ColumnFiles, identity_of
from data.cache.progress import TokenizationProgress
from data.config import DataConfig
from data.policy import read_policy
from data.preferences.mismatched import with_mismatched
from data.preferences.pair import PreferencePair
from data.preferences.reading import PairReader
from data.preferences.replays import Replays
from data.preferences.turn_labels import NO_LABEL, Labels, labels_of
from data.sources import PreferencesSource
from data.trajectories.kinds import token_kinds
from data.trajectories.reading import RecordProblem, read_tools
from data.trajectories.trajectory import Trajectory
from data.trajectories.weights import own_weights
from maverick_jax.errors import InputError
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Rendered, Role, dialect_of, render

LAYOUT = 3
"""Version of the cached arrays. It changes whenever the same pairs give other arrays."""
PROBLEMS_KEPT = 20

_log = logging.getLogger(__name__)


def tokenize_pairs(name: str, config: DataConfig, tokenizer: Tokenizer) -> ArrayFolder:
    """The tokenized source `name`. The chosen side of pair i is `tokens[offsets[2i]:offsets[2i + 1]]`; the rejected one
    follows it; a side that is missing has no tokens. Per token: `kinds` uint8 (`TokenKind`), `own` float32 (the weight
    that its message has in the data; NaN: none), `turn` uint16 (the number of its assistant turn in its side, from 0;
    65535: none) and `turn_label` uint8 (the `TurnLabel` of the turn that ends with this token; 255: none). Per side:
    `turns` int64, the number of assistant turns. Per pair: `shared` int64, the number of first tokens that both sides
    have; `task` int64, the number of its task in the order of the files; `mismatched`
    uint8: 1 for an answer to another prompt, which is the chosen side of a pair of its own.

    An interrupted build starts over. Raises InputError for pairs that cannot be read or rendered."""
    source = config.sources[name]
    assert isinstance(source, PreferencesSource)
    options = source.preferences
    dialect = dialect_of(options.dialect, tokenizer).name
    tools = read_tools(options.tools) if options.tools is not None else ()
    paths = source.files(name)
    policy = None if options.policy is None else read_policy(options.policy)
    said = options.model_dump(mode="json", exclude={"kind_weights", "prefix", "dialect", "tools", "policy"})
    said |= {} if policy is None else {"policy": policy.model_dump_json()}
    replays = None if options.replay is None else Replays(options.replay.make())
    stats = [identity_of(path) for path in paths]
    identity = ["pairs", LAYOUT, tokenizer.fingerprint, dialect, said, [*map(repr, tools)], stats]
    path = config.cached("tokens", identity)

    def build(folder: pathlib.Path) -> None:
        _log.info("tokenizing source %s (%d files of pairs) into %s", name, len(paths), path)
        form = (options.form, options.unknown, options.malformed)
        reader = PairReader(options.make, options.per_task, *form, tools, policy, replays)
        rendering = _PairRendering(reader, tokenizer, dialect, options.mismatched)
        with _PairColumns(folder, tokenizer) as columns, TokenizationProgress(name) as progress:
            for pair, rendered, labels, crossed in rendering.pairs(paths, progress):
                columns.add(pair, rendered, labels)
                for side, found in crossed:
                    columns.add_mismatched(pair, side, found)
                progress.update(columns.tokens, columns.pairs)
        if not columns.pairs:
            problems = rendering.reader.tally.problems
            why = f" of {reader.tally.records:,} records{f'; the first: {problems[0]}' if problems else ''}"
            raise InputError(f"data.sources.{name}: no pair can be read or made{why}")
        if [identity_of(path) for path in paths] != stats:
            raise InputError(f"data.sources.{name}: a file changed while it was read; start again")
        meta = {"empty_documents": 0, "dialect": dialect, "read": rendering.counts()}
        seal(folder, columns.dtypes, meta | {"pairs": columns.counts()})

    return build_once(path, build)


class RenderedPair(NamedTuple):
    """A pair as tokens."""

    pair: PreferencePair
    sides: list[Rendered | None]
    labels: tuple[Labels, Labels]
    mismatched: list[tuple[Trajectory, Rendered]]
    """Answers to another prompt."""


class _PairRendering:
    """Reads pairs and renders their sides in the chat format; counts pairs that cannot be rendered."""

    def __init__(self, reader: PairReader, tokenizer: Tokenizer, dialect: str, mismatched: bool):
        self.reader, self.tokenizer, self.dialect, self.mismatched = reader, tokenizer, dialect, mismatched
        self.unrenderable = 0

    def pairs(self, paths: list[pathlib.Path], progress: TokenizationProgress) -> Iterator["RenderedPair"]:
        read = self._read(paths, progress)
        for pair, crossed in with_mismatched(read) if self.mismatched else ((pair, []) for pair in read):
            try:
                sides, labels = [self._render(side) for side in pair.sides], labels_of(pair)
                others = [(side, render(side.conversation, self.tokenizer, self.dialect)) for side in crossed]
            except InputError as error:
                where = next(side.provenance for side in pair.sides if side is not None)
                problem = RecordProblem(where.file, where.record or 0, where.line, str(error))
                if self.reader.malformed == "stop":
                    raise InputError(str(problem)) from None
                self.unrenderable += 1
                self.reader.tally.refuse(problem)
                continue
            yield RenderedPair(pair, sides, labels, others)

    def _read(self, paths: list[pathlib.Path], progress: TokenizationProgress) -> Iterator[PreferencePair]:
        for path in paths:
            progress.part(str(path))
            yield from self.reader.pairs(path)

    def _render(self, side: Trajectory | None) -> Rendered | None:
        return None if side is None else render(side.conversation, self.tokenizer, self.dialect)

    def counts(self) -> dict[str, Any]:
        """The counts of the `Tally`, where pairs that the dialect cannot express count as malformed."""
        found = self.reader.tally.as_dict()
        found["trajectories"] -= self.unrenderable
        return found | {"problems": found["problems"][:PROBLEMS_KEPT]}


class _PairColumns(ColumnFiles):
    """Writes the array files from their beginning."""

    def __init__(self, folder: pathlib.Path, tokenizer: Tokenizer):
        whole = np.dtype("<i8")
        own = {"kinds": np.dtype("u1"), "own": np.dtype("<f4"), "turn": np.dtype("<u2"), "turn_label": np.dtype("u1")}
        columns = own | dict.fromkeys(("turns", "shared", "task"), whole)
        super().__init__(folder, tokenizer, columns | {"mismatched": np.dtype("u1")})
        self.tokens = self.pairs = self.mismatched = 0
        self._tasks: dict[str, int] = {}
        self._origins: collections.Counter[str] = collections.Counter()
        self._unpaired = 0

    def add(self, pair: PreferencePair, rendered: list[Rendered | None], labels: tuple[Labels, Labels]) -> None:
        for side, found, of_turns in zip(pair.sides, rendered, labels, strict=True):
            if side is not None and found is not None:
                kinds, turn = token_kinds(side, found), _turns(side, found)
                own = own_weights(side, found, kinds)
                self.write(tokens=found.ids, kinds=kinds, own=own, turn=turn, turn_label=_turn_labels(of_turns, found))
                self.tokens += found.ids.size
            roles = [] if side is None else [step.message.role for step in side.steps]
            self.write(offsets=[self.tokens], turns=[roles.count(Role.ASSISTANT)])
        self.write(shared=[_shared(*rendered)], task=[self._task(pair)], mismatched=[0])
        self.pairs += 1
        self._origins[pair.origin or "file"] += 1
        self._unpaired += None in rendered

    def add_mismatched(self, pair: PreferencePair, side: Trajectory, rendered: Rendered) -> None:
        """Adds an answer to the prompt of `pair` that belongs to another one. Only the answer counts."""
        kinds, turn = token_kinds(side, rendered), _turns(side, rendered)
        own, label = own_weights(side, rendered, kinds), np.full(rendered.ids.size, NO_LABEL, np.uint8)
        self.write(tokens=rendered.ids, kinds=kinds, own=own, turn=turn, turn_label=label)
        self.tokens += rendered.ids.size
        turns = sum(step.message.role is Role.ASSISTANT for step in side.steps)
        begin = int(np.flatnonzero(rendered.messages == len(side.steps) - 1)[0])
        self.write(offsets=[self.tokens, self.tokens], turns=[turns, 0])
        self.write(shared=[begin], task=[self._task(pair)], mismatched=[1])
        self.mismatched += 1

    def _task(self, pair: PreferencePair) -> int:
        return self._tasks.setdefault(pair.group, len(self._tasks))

    def counts(self) -> dict[str, Any]:
        """The numbers of pairs, tasks, answers without another side, mismatched ones, and pairs by what made them."""
        return {"pairs": self.pairs, "tasks": len(self._tasks), "unpaired": self._unpaired,
                "mismatched": self.mismatched, "origins": dict(self._origins)}  # fmt: skip


NO_TURN = np.iinfo(np.uint16).max
"""The turn of tokens that no assistant turn has."""


def _turns(side: Trajectory, rendered: Rendered) -> np.ndarray:
    """uint16[T]: the number of each token's assistant turn, from 0."""
    of_message = np.full(len(side.steps) + 1, NO_TURN, np.uint16)  # the last is that of tokens of no message, -1
    own = [i for i, step in enumerate(side.steps) if step.message.role is Role.ASSISTANT]
    of_message[own] = np.minimum(np.arange(len(own)), NO_TURN - 1)
    return of_message[rendered.messages]


def _turn_labels(labels: Labels, rendered: Rendered) -> np.ndarray:
    """uint8[T]: the label of the message that ends with each token."""
    found = np.full(rendered.ids.size, NO_LABEL, np.uint8)
    for message, label in labels.items():
        found[np.flatnonzero(rendered.messages == message)[-1]] = label
    return found


def _shared(chosen: Rendered | None, rejected: Rendered | None) -> int:
    """The number of first tokens that both sides have."""
    if chosen is None or rejected is None:
        return 0
    least = min(chosen.ids.size, rejected.ids.size)
    differ = np.flatnonzero(chosen.ids[:least] != rejected.ids[:least])
    return int(differ[0]) if differ.size else least
