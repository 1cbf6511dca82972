"""Tokenizes a source of texts into the cache, once. An interrupted tokenization continues where it stopped."""

import dataclasses
import itertools
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data.array_folder import ArrayFolder, array_file, build_once, seal
from data.cache.evaluation_texts import ContaminationFilter, Report
from data.cache.progress import TokenizationProgress
from data.config import DataConfig
from data.fill_in_the_middle import VERSION, Sentinels, rearranged
from data.sources import DocumentSource, SourceDocument, SourcePart
from maverick_jax.errors import InputError
from maverick_jax.files import write_atomically
from maverick_jax.text import Tokenizer

LAYOUT = 1
"""Version of the cached arrays. It changes whenever the same files give other arrays."""
Rearrange = Callable[[np.ndarray, int], np.ndarray]
JOURNAL = "journal.json"
BATCH_DOCUMENTS, BATCH_CHARACTERS = 4096, 1 << 22
COMMIT_BYTES = 1 << 26
"""Bytes of tokens after which progress is committed; an interruption loses no more."""

_log = logging.getLogger(__name__)


def tokenize_text(name: str, config: DataConfig, tokenizer: Tokenizer) -> ArrayFolder:
    """The tokenized source `name`: `tokens` uint16 or uint32 [tokens], `offsets` int64 [documents + 1]. Document d is
    `tokens[offsets[d]:offsets[d + 1]]`, including the tokens for begin and end of text. Raises InputError for a source
    that cannot be read to its end."""
    source = config.sources[name]
    assert isinstance(source, DocumentSource)
    parts = source.parts(name, tokenizer)
    identity = [LAYOUT, tokenizer.fingerprint, [part.identity() for part in parts]]
    rearrange = None
    if (settings := source.fill_in_the_middle) is not None:
        sentinels = Sentinels.of(tokenizer.controls, tokenizer.name, f"data.sources.{name}.fill_in_the_middle")
        rearrange = lambda ids, number: rearranged(ids, number, settings, sentinels)
        identity.append([VERSION, settings.model_dump(mode="json")])
    filtered = None if source.decontaminate is None else ContaminationFilter(name, source.decontaminate)
    if filtered is not None:
        identity.append(["decontaminate", filtered.identity()])
    path = config.cached("tokens", identity)

    def build(folder: pathlib.Path) -> None:
        _log.info("tokenizing source %s (%d files) into %s", name, len(parts), path)
        if tokenizer.eos_id is None:
            _log.warning("tokenizer %s has no end-of-text token: documents end without one", tokenizer.name)
        try:
            _Tokenization(folder, tokenizer, name, rearrange, filtered).run(parts)
            if [part.identity() for part in parts] != identity[2]:
                raise InputError(f"data.sources.{name}: a file changed while it was read; start again")
        except InputError:
            shutil.rmtree(folder)
            raise

    return build_once(path, build)


@dataclasses.dataclass
class _Journal:
    """How much of the array files is valid."""

    part: int = 0
    """Number of complete parts."""
    read: int = 0
    """Documents read in the next part."""
    documents: int = 0
    tokens: int = 0
    empty: int = 0
    left_out: Report = dataclasses.field(default_factory=dict)


class _Tokenization:
    """Tokenizes one source into `folder`."""

    def __init__(
        self,
        folder: pathlib.Path,
        tokenizer: Tokenizer,
        name: str,
        rearrange: Rearrange | None = None,
        filtered: ContaminationFilter | None = None,
    ):
        """rearrange: (ids of a document, its number) -> the ids that are kept; None: all are kept as they are.
        filtered: what is left out; None: nothing."""
        self.folder, self.tokenizer, self.name, self.rearrange = folder, tokenizer, name, rearrange
        self.filtered = filtered
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        self.end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        self.journal = self._resume()

    def run(self, parts: list[SourcePart]) -> None:
        with (
            self._append("tokens") as tokens,
            self._append("offsets") as offsets,
            TokenizationProgress(self.name) as progress,
        ):
            self.files = (tokens, offsets)
            for part in parts[self.journal.part :]:
                progress.part(part.label)
                self._read(part, progress)
        if not self.journal.documents:
            more = "" if self.filtered is None else ", or left out (decontaminate)"
            raise InputError(f"data.sources.{self.name}: every document is empty{more}")
        meta: dict[str, Any] = {"empty_documents": self.journal.empty}
        if self.filtered is not None:
            self.filtered.say(self.journal.left_out, self.journal.documents)
            meta["contaminated"] = self.journal.left_out
        (self.folder / JOURNAL).unlink(missing_ok=True)
        seal(self.folder, {"tokens": self.dtype, "offsets": np.dtype("<i8")}, meta)

    def _read(self, part: SourcePart, progress: TokenizationProgress) -> None:
        journal, committed = self.journal, self.journal.tokens
        for batch in _batches(itertools.islice(part.documents(), journal.read, None)):
            journal.read += len(batch)
            full = [d for d in batch if len(d.content)]
            journal.empty += len(batch) - len(full)
            self._write([d for d in full if self.filtered is None or self.filtered.keeps(d, journal.left_out)])
            progress.update(journal.tokens, journal.documents)
            if (journal.tokens - committed) * self.dtype.itemsize >= COMMIT_BYTES:
                self._commit()
                committed = journal.tokens
        if not journal.read:
            raise InputError(f"{part.label}: contains no document")
        journal.part, journal.read = journal.part + 1, 0
        self._commit()

    def _write(self, batch: list[SourceDocument]) -> None:
        ends = []
        for number, ids in enumerate(self._encode(batch), self.journal.documents):
            if self.rearrange is not None:
                ids = self.rearrange(np.asarray(ids, self.dtype), number)
            array = np.concatenate([np.asarray(a, self.dtype) for a in (self.begin, ids, self.end)])
            self.files[0].write(array.data)
            self.journal.tokens += array.size
            ends.append(self.journal.tokens)
        self.journal.documents += len(ends)
        self.files[1].write(np.asarray(ends, "<i8").data)

    def _encode(self, batch: list[SourceDocument]) -> list:
        texts = [d.content for d in batch if isinstance(d.content, str)]
        try:
            encoded = iter(self.tokenizer.encode_batch(texts))
        except InputError:
            for document in batch:
                _encode_alone(document, self.tokenizer)
            raise
        return [next(encoded) if isinstance(d.content, str) else d.content for d in batch]

    def _commit(self) -> None:
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())
        write_atomically(self.folder / JOURNAL, json.dumps(dataclasses.asdict(self.journal)).encode())

    def _resume(self) -> _Journal:
        """The last journal, if the array files are at least as long as it says; else an empty one."""
        try:
            journal = _Journal(**json.loads((self.folder / JOURNAL).read_bytes()))
            sizes = [array_file(self.folder, name).stat().st_size for name in ("tokens", "offsets")]
            if sizes[0] >= journal.tokens * self.dtype.itemsize and sizes[1] >= 8 * (journal.documents + 1):
                _log.info("source %s: resuming after %d documents", self.name, journal.documents)
                return journal
        except (OSError, ValueError, TypeError):
            pass
        return _Journal()

    def _append(self, name: str):
        """Opens the array's file for writing and truncates it to the length in the journal. (Truncating a new `offsets`
        to a longer length fills in its first entry, 0.)"""
        path = array_file(self.folder, name)
        path.touch()
        file = path.open("r+b")
        end = self.journal.tokens * self.dtype.itemsize if name == "tokens" else 8 * (self.journal.documents + 1)
        file.truncate(end)
        file.seek(0, os.SEEK_END)
        return file


def _encode_alone(document: SourceDocument, tokenizer: Tokenizer) -> None:
    """Raises the tokenizer's error with the document's file and line."""
    try:
        if isinstance(document.content, str):
            tokenizer.encode(document.content)
    except InputError as error:
        raise InputError(f"{document.where}: {error}") from None


def _batches(documents: Iterator[SourceDocument]) -> Iterator[list[SourceDocument]]:
    """Groups documents into batches that are large enough for one tokenizer call and fit in memory."""
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.content)
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
