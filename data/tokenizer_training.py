"""`maverick data tokenizer`: train a tokenizer on a config's sources of documents."""

import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from data.cache.evaluation_texts import ContaminationFilter, Report
from data.config import DataConfig
from data.sources import DocumentSource
from maverick_jax.errors import InputError
from maverick_jax.files import new_folder
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text import Tokenizer, load_tokenizer
from maverick_jax.text.tokenizers.base import require_unicode
from maverick_jax.text.tokenizers.byte_pairs import train_byte_pairs

JUDGED = 20
"""One document in so many is not trained on, and gives the report's bytes per token."""
PIECE = 10_000
"""Characters of the pieces in which longer documents are taken, so that one long document is divided too."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Read:
    """What was read of a source."""

    documents: int = 0
    bytes: int = 0
    judged: list[str] = dataclasses.field(default_factory=list)
    left_out: Report = dataclasses.field(default_factory=dict)
    """Documents that `decontaminate` leaves out."""


def train_tokenizer(
    config: DataConfig, out: str | pathlib.Path, vocab_size: int, only: Sequence[str] = (), most_bytes: int = 2**30
) -> dict[str, Any]:
    """Train a byte-level BPE of `vocab_size` entries on the sources of `config` and write it to the new folder `out`.

    only: names of the sources to read; none: all. most_bytes: of each source, no more than so many bytes of text are
    read, from its beginning. One piece of text in 20, chosen by its content, is not trained on: the returned report has
    `bytes_per_token` of those, by source, for the new tokenizer and for the config's own. Raises InputError for an
    unknown source, one without text, and as `train_byte_pairs` does.
    """
    known = load_tokenizer(config.tokenizer)
    seen = {name: _Read() for name in _chosen(config, only)}
    with new_folder(pathlib.Path(out)) as folder:
        texts = (text for name in seen for text in _trained(name, config, known, most_bytes, seen[name]))
        train_byte_pairs(texts, vocab_size, folder)
        made = load_tokenizer(folder)
    return {
        "folder": str(out),
        "vocab_size": made.vocab_size,
        "compared_with": known.name,
        "sources": {name: _report(found, made, known) for name, found in seen.items()},
    }


def show(found: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"{found['folder']}: {found['vocab_size']:,} entries; bytes per token of text not trained on:"]
    for name, source in found["sources"].items():
        ours, theirs = source["bytes_per_token"], source["compared_bytes_per_token"]
        rate = "too little text to judge" if ours is None else f"{ours:.2f} ({theirs:.2f}: {found['compared_with']})"
        lines.append(f"  {name}: {rate}; read {source['documents']:,} documents, {source['bytes']:,} bytes")
        if left_out := sum(file["documents"] for file in source["contaminated"].values()):
            lines[-1] += f"; left out {left_out:,} that evaluations have"
    return "\n".join(lines)


def _chosen(config: DataConfig, only: Sequence[str]) -> list[str]:
    for name in only:
        if name not in config.sources:
            near = did_you_mean(name, config.sources)
            raise InputError(f"data.sources: no source {name!r}{near} (sources: {', '.join(config.sources)})")
    names = list(only or config.sources)
    for name in names:
        if not isinstance(config.sources[name], DocumentSource):
            others = [n for n in names if isinstance(config.sources[n], DocumentSource)]
            hint = f"name others with --source: {', '.join(others)}" if others else "there is no other"
            raise InputError(f"data.sources.{name}: no source of documents; expected one to train on ({hint})")
    return names


def _trained(name: str, config: DataConfig, known: Tokenizer, most_bytes: int, seen: _Read) -> Iterator[str]:
    """Pieces of the source's text to train on; the others are kept in `seen`. What the source leaves out is neither."""
    source = config.sources[name]
    assert isinstance(source, DocumentSource)
    filtered = None if source.decontaminate is None else ContaminationFilter(name, source.decontaminate)
    for part in source.parts(name, known):
        _log.info("reading source %s: %s", name, part.label)
        for document in part.documents():
            if not isinstance(document.content, str):
                raise InputError(f"{document.where}: has token ids, no text; expected documents of text")
            try:
                require_unicode(document.content)
            except InputError as error:
                raise InputError(f"{document.where}: {error}") from None
            if filtered is not None and not filtered.keeps(document, seen.left_out):
                continue
            seen.documents += 1
            for begin in range(0, len(document.content), PIECE):
                piece = document.content[begin : begin + PIECE]
                content = piece.encode("utf-8")
                seen.bytes += len(content)
                if hashlib.sha256(content).digest()[0] % JUDGED:
                    yield piece
                else:
                    seen.judged.append(piece)
                if seen.bytes >= most_bytes:
                    _log.info("source %s: stopped after %d bytes, the limit", name, seen.bytes)
                    return


def _report(seen: _Read, made: Tokenizer, known: Tokenizer) -> dict[str, Any]:
    judged = sum(len(text.encode("utf-8")) for text in seen.judged)
    rate = lambda tokenizer: judged / sum(map(len, tokenizer.encode_batch(seen.judged))) if judged else None
    return {
        "documents": seen.documents,
        "contaminated": seen.left_out,
        "bytes": seen.bytes,
        "judged_bytes": judged,
        "bytes_per_token": rate(made),
        "compared_bytes_per_token": rate(known),
    }
