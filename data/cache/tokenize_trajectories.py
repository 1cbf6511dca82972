"""Renders and tokenizes a source of trajectories into the cache, once, with the kind of each token.

Only weights stored in the data are cached; config weights are applied when rows are read, so changing them does not
re-tokenize.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from data.array_folder import ArrayFolder, array_file, build_once, seal
from data.cache.progress import TokenizationProgress
from data.config import DataConfig
from data.sources import TrajectoriesSource
from data.trajectories.decisions import choices, count
from data.trajectories.filters import CurationConfig, Report, apply
from data.trajectories.kinds import token_kinds
from data.trajectories.reading import RecordProblem, Tally, read_tools, read_trajectories
from data.trajectories.trajectory import Outcome, Trajectory
from data.trajectories.weights import own_weights
from maverick_jax.errors import InputError, harmless
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Kind, Rendered, Role, Tool, find_dialect, render
from maverick_jax.text.chat.dialects import DEFAULT
from maverick_jax.text.chat.render import HEADER_START

LAYOUT = 3
"""Version of the cached arrays. It changes whenever the same trajectories give other arrays."""
UNKNOWN_LOGGED = 20
"""Most names of unknown fields that are logged."""
PROBLEMS_KEPT, DROPPED_KEPT = 20, 1_000
"""Numbers of malformed records and of dropped trajectories that are listed; all are counted."""

_log = logging.getLogger(__name__)


def tokenize_trajectories(name: str, config: DataConfig, tokenizer: Tokenizer) -> ArrayFolder:
    """The tokenized source `name`. Trajectory d is `tokens[offsets[d]:offsets[d + 1]]`, as the chat format renders it.
    Per token: `kinds` uint8 (`TokenKind`), `choices` uint8 (`decisions.choices`) and `own` float32 (the weight that its
    message has in the data; NaN: none). `turns` int64 [turns] are the offsets at which turns begin. Per trajectory:
    `context` int64, the number of first tokens with the system message and the tools; `success` int8 (-1: unknown);
    `reward` float64 (NaN: none); `tools` int64, the number of declared tools; `decisions` int64 [3], the number of
    turns by `Decision`.

    An interrupted build starts over. Raises InputError for trajectories that cannot be read or rendered."""
    source = config.sources[name]
    assert isinstance(source, TrajectoriesSource)
    options = source.trajectories
    dialect = options.dialect or tokenizer.dialect or DEFAULT
    find_dialect(dialect)
    tools = read_tools(options.tools) if options.tools is not None else ()
    paths = source.files(name)
    settings = [dialect, options.format or "", options.unknown, options.malformed, *map(repr, tools)]
    settings += [section.model_dump_json() if section else "" for section in (options.filter, options.scrub)]
    stats = [_identity(path) for path in paths]
    identity = ["runs", LAYOUT, tokenizer.fingerprint, settings, stats]
    path = config.cache / "tokens" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

    def build(folder: pathlib.Path) -> None:
        _log.info("tokenizing source %s (%d files of trajectories) into %s", name, len(paths), path)
        rendering = _Rendering(source, tokenizer, dialect, tools)
        with _Columns(folder, tokenizer) as columns, TokenizationProgress(name) as progress:
            for trajectory, rendered in rendering.trajectories(paths, progress):
                columns.add(trajectory, rendered)
                progress.update(columns.tokens, columns.trajectories)
        if unknown := rendering.tally.seen.kept:
            names = ", ".join(f"{harmless(field)} ({n:,})" for field, n in unknown.most_common(UNKNOWN_LOGGED))
            _log.warning("source %s: %d fields of unknown meaning have no effect: %s", name, len(unknown), names)
        if not columns.trajectories:
            raise InputError(f"data.sources.{name}: no trajectory can be read{rendering.first_problem()}")
        if [_identity(path) for path in paths] != stats:
            raise InputError(f"data.sources.{name}: a file changed while it was read; start again")
        seal(folder, columns.dtypes, {"empty_documents": 0, "dialect": dialect, "runs": rendering.counts()})

    return build_once(path, build)


def _identity(path: pathlib.Path) -> list[str | int]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


class _Rendering:
    """Reads trajectories and renders them in the chat format; counts trajectories that cannot be rendered."""

    def __init__(self, source: TrajectoriesSource, tokenizer: Tokenizer, dialect: str, tools: tuple[Tool, ...]):
        self.options, self.tokenizer, self.dialect, self.tools = source.trajectories, tokenizer, dialect, tools
        self.tally, self.report = Tally(), Report()
        self.unrenderable = 0

    def trajectories(
        self, paths: list[pathlib.Path], progress: TokenizationProgress
    ) -> Iterator[tuple[Trajectory, Rendered]]:
        chosen, self.report = apply(self._read(paths, progress), self._config(), count_tokens=self._count_tokens)
        for trajectory in chosen:
            try:
                yield trajectory, self._render(trajectory)
            except InputError as error:
                where = trajectory.provenance
                problem = RecordProblem(where.file, where.record or 0, where.line, str(error))
                if self.options.malformed == "stop":
                    raise InputError(str(problem)) from None
                self.unrenderable += 1
                self.tally.refuse(problem)

    def _read(self, paths: list[pathlib.Path], progress: TokenizationProgress) -> Iterator[Trajectory]:
        o = self.options
        reading: dict[str, Any] = {"format": o.format, "unknown": o.unknown, "malformed": o.malformed}
        for path in paths:
            progress.part(str(path))
            yield from read_trajectories(path, **reading, tools=self.tools, tally=self.tally)

    def _config(self) -> CurationConfig:
        return CurationConfig(filter=self.options.filter, scrub=self.options.scrub)

    def _render(self, trajectory: Trajectory) -> Rendered:
        return render(trajectory.conversation, self.tokenizer, self.dialect)

    def _count_tokens(self, trajectory: Trajectory) -> int:
        return self._render(trajectory).ids.size

    def first_problem(self) -> str:
        if self.report.dropped:
            counts = ", ".join(f"{rule} {count:,}" for rule, count in self.report.dropped_by.items())
            return f": the filter drops {self.report.dropped:,} of {self.report.read:,} ({counts})"
        problems = self.tally.problems
        return f" of {self.tally.records:,} records; the first: {problems[0]}" if problems else ""

    def counts(self) -> dict[str, Any]:
        """The counts of the `Tally`, where trajectories that the dialect cannot express count as malformed."""
        found = self.tally.as_dict()
        found["trajectories"] -= self.unrenderable
        chosen = {"chosen": self.report.as_dict(DROPPED_KEPT)} if self.options.filter or self.options.scrub else {}
        return found | {"problems": found["problems"][:PROBLEMS_KEPT]} | chosen


class _Columns:
    """Writes the array files from their beginning."""

    def __init__(self, folder: pathlib.Path, tokenizer: Tokenizer):
        self.folder, self.tokenizer = folder, tokenizer
        token = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        whole = np.dtype("<i8")
        self.dtypes: dict[str, np.dtype] = {
            "tokens": token,
            "offsets": whole,
            "kinds": np.dtype("u1"),
            "choices": np.dtype("u1"),
            "own": np.dtype("<f4"),
            "turns": whole,
            "context": whole,
            "success": np.dtype("i1"),
            "reward": np.dtype("<f8"),
            "tools": whole,
            "decisions": whole,
        }
        self.tokens = self.trajectories = 0

    def __enter__(self) -> "_Columns":
        self._open = contextlib.ExitStack()
        opened = lambda name: self._open.enter_context(array_file(self.folder, name).open("wb"))
        self._files: dict[str, BinaryIO] = {name: opened(name) for name in self.dtypes}
        self._write(offsets=[0])
        return self

    def __exit__(self, *error) -> None:
        self._open.close()

    def add(self, trajectory: Trajectory, rendered: Rendered) -> None:
        kinds = token_kinds(trajectory, rendered)
        begin, outcome = self.tokens, trajectory.outcome
        self.tokens += rendered.ids.size
        self.trajectories += 1
        turns = [span.begin for span in rendered.spans if span.kind is Kind.CONTROL and span.text == HEADER_START.name]
        own = own_weights(trajectory, rendered, kinds)
        self._write(tokens=rendered.ids, offsets=[self.tokens], kinds=kinds, own=own, turns=[begin + t for t in turns])
        decided = choices(trajectory, rendered, self.tokenizer)
        self._write(choices=decided, decisions=count(decided), tools=[len(trajectory.tools)])
        self._write(context=[_context(rendered, turns)], success=[_success(outcome)], reward=[_reward(outcome)])

    def _write(self, **columns) -> None:
        for name, values in columns.items():
            self._files[name].write(np.asarray(values, self.dtypes[name]).data)


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
