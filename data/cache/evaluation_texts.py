"""Leaves contaminated documents out of a source while it is tokenized: reads evaluations, counts what they match."""

import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from data.compression import MAX_LINE, open_data, read_whole, split_ending
from data.decontamination import VERSION, Decontamination, Evaluations
from data.sources import SourceDocument
from data.sources.files import BOM, find_source_files
from maverick_jax.errors import InputError, harmless

TEXT, LINES = (".txt", ".text", ".md"), (".jsonl", ".ndjson", ".json")
EXAMPLES = 5
"""Most documents of each file that a report names."""
SHOWN = 200
"""Most characters of the shared words that it shows."""

Report = dict[str, dict[str, Any]]
"""File of an evaluation -> number of `documents` that were left out for it, and the first `examples` of them."""

_log = logging.getLogger(__name__)


class ContaminationFilter:
    """What a source leaves out."""

    def __init__(self, name: str, config: Decontamination):
        """Finds the files of the evaluations; they are read when the first document is judged. Raises InputError for a
        path without files."""
        self._config, self._key = config, f"data.sources.{name}.decontaminate"
        self._files = [
            path for given in config.files for path in find_source_files(name, given, TEXT + LINES, TEXT + LINES).files
        ]
        self._evaluations: Evaluations | None = None

    def identity(self) -> list[Any]:
        """Values that change whenever other documents may be left out."""
        stats = [(str(path.resolve()), path.stat()) for path in self._files]
        settings = self._config.model_dump(mode="json", exclude={"files"})
        return [VERSION, settings, [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]]

    def keeps(self, document: SourceDocument, report: Report) -> bool:
        """Whether a document shares nothing; otherwise it is counted in `report`. Raises InputError for a document of
        token ids, and for evaluations that cannot be read."""
        if not isinstance(document.content, str):
            raise InputError(f"{self._key}: {document.where} is token ids, which are not compared; expected null")
        if self._evaluations is None:
            self._evaluations = Evaluations(self._texts(), self._config)
            if ignored := self._evaluations.ignored:
                _log.warning("%s: %d texts have fewer than %d words and are not looked for", self._key, ignored,
                             self._config.least_words)  # fmt: skip
        if (match := self._evaluations.match(document.content)) is None:
            return True
        of_file = report.setdefault(match.file, {"documents": 0, "examples": []})
        of_file["documents"] += 1
        if len(of_file["examples"]) < EXAMPLES:
            of_file["examples"].append({"document": document.where, "words": match.text[:SHOWN]})
        return False

    def say(self, report: Report, kept: int) -> None:
        """Logs a report."""
        total = sum(of_file["documents"] for of_file in report.values())
        _log.info("%s: left out %d of %d documents", self._key, total, total + kept)
        for file, found in report.items():
            example = found["examples"][0]
            said = f"{file}: {found['documents']:,} documents, such as {example['document']}: {example['words']}"
            _log.info("%s: %s", self._key, harmless(said))

    def _texts(self) -> Iterator[tuple[str, str]]:
        for path in self._files:
            texts = _strings(path) if split_ending(path)[0] in LINES else _paragraphs(path)
            yield from ((str(path), text) for text in texts)


def _paragraphs(path: pathlib.Path) -> Iterator[str]:
    """The paragraphs of a file of text, which blank lines divide."""
    try:
        text = read_whole(path).removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}: {error.reason})") from None
    lines: list[str] = []
    for line in (*text.splitlines(), ""):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []


def _strings(path: pathlib.Path) -> Iterator[str]:
    """Every string value in a file of JSON lines."""
    with open_data(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            if len(line) > MAX_LINE:
                raise InputError(f"{path}: line {number}: longer than {MAX_LINE:,} bytes")
            if not line.strip():
                continue
            try:
                value = json.loads(line.removeprefix(BOM))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}: line {number}: not JSON: {error}") from None
            yield from _inside(value)


def _inside(value: Any) -> Iterator[str]:
    left: list[Any] = [value]
    while left:
        found = left.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict):
            left += reversed(found.values())
        elif isinstance(found, Sequence):
            left += reversed(found)
