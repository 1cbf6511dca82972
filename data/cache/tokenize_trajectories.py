"""Renders and tokenizes a source of trajectories into the cache, once, with the kind of each token.

Only weights stored in the data are cached; config weights are applied when rows are read, so changing them does not
re-tokenize.
"""

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from data.array_folder import ArrayFolder, build_once, seal
from data.cache.column_files import identity_of
from data.cache.columns import RunColumns
from data.cache.progress import TokenizationProgress
from data.config import DataConfig
from data.policy import ToolPolicy, ViolationCounts, masked, read_policy
from data.sources import TrajectoriesSource
from data.trajectories.filters import CurationConfig, Report, apply
from data.trajectories.latent_thoughts import LATENT_LAYOUT, with_latents
from data.trajectories.reading import RecordProblem, Tally, read_tools, read_trajectories
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError, harmless
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Rendered, Tool, dialect_of, render

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
    dialect = dialect_of(options.dialect, tokenizer).name
    tools = read_tools(options.tools) if options.tools is not None else ()
    paths = source.files(name)
    settings = [dialect, options.format or "", options.unknown, options.malformed, *map(repr, tools)]
    settings += [section.model_dump_json() if section else "" for section in (options.filter, options.scrub)]
    policy = None if options.policy is None else read_policy(options.policy)
    settings += [] if policy is None else [policy.model_dump_json()]
    settings += [] if options.latents is None else [LATENT_LAYOUT, options.latents.model_dump_json()]
    stats = [identity_of(path) for path in paths]
    identity = ["runs", LAYOUT, tokenizer.fingerprint, settings, stats]
    path = config.cached("tokens", identity)

    def build(folder: pathlib.Path) -> None:
        _log.info("tokenizing source %s (%d files of trajectories) into %s", name, len(paths), path)
        rendering = _Rendering(source, tokenizer, dialect, tools, policy)
        with RunColumns(folder, tokenizer) as columns, TokenizationProgress(name) as progress:
            for trajectory, rendered in rendering.trajectories(paths, progress):
                columns.add(trajectory, rendered)
                progress.update(columns.tokens, columns.trajectories)
        if unknown := rendering.tally.seen.kept:
            names = ", ".join(f"{harmless(field)} ({n:,})" for field, n in unknown.most_common(UNKNOWN_LOGGED))
            _log.warning("source %s: %d fields of unknown meaning have no effect: %s", name, len(unknown), names)
        if not columns.trajectories:
            raise InputError(f"data.sources.{name}: no trajectory can be read{rendering.first_problem()}")
        if [identity_of(path) for path in paths] != stats:
            raise InputError(f"data.sources.{name}: a file changed while it was read; start again")
        seal(folder, columns.dtypes, {"empty_documents": 0, "dialect": dialect, "runs": rendering.counts()})

    return build_once(path, build)


class _Rendering:
    """Reads trajectories and renders them in the chat format; counts trajectories that cannot be rendered."""

    def __init__(
        self,
        source: TrajectoriesSource,
        tokenizer: Tokenizer,
        dialect: str,
        tools: tuple[Tool, ...],
        policy: ToolPolicy | None,
    ):
        self.options, self.tokenizer, self.dialect, self.tools = source.trajectories, tokenizer, dialect, tools
        self.violations = None if policy is None else ViolationCounts(policy)
        self.tally, self.report = Tally(), Report()
        self.unrenderable = 0

    def trajectories(
        self, paths: list[pathlib.Path], progress: TokenizationProgress
    ) -> Iterator[tuple[Trajectory, Rendered]]:
        chosen, self.report = apply(self._read(paths, progress), self._config(), count_tokens=self._count_tokens)
        for number, trajectory in enumerate(chosen):
            if self.options.latents is not None:
                trajectory = with_latents(trajectory, number, self.options.latents)
            try:
                rendered = self._render(trajectory)
                yield self._judged(trajectory), rendered
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

    def _judged(self, trajectory: Trajectory) -> Trajectory:
        """Counts violations; messages with one get weight 0."""
        return trajectory if self.violations is None else masked(trajectory, self.violations.add(trajectory))

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
        broken = {} if self.violations is None else {"violations": self.violations.as_dict()}
        return found | {"problems": found["problems"][:PROBLEMS_KEPT]} | chosen | broken
