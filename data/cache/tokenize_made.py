"""Writes the documents of a source that makes them into the cache, once, with the kind of each token."""

import logging
import pathlib

from data.array_folder import ArrayFolder, build_once, seal
from data.cache.columns import RunColumns
from data.cache.progress import TokenizationProgress
from data.config import DataConfig
from data.sources import MadeSource
from maverick_jax.errors import InputError
from maverick_jax.text import Tokenizer

LAYOUT = 1
"""Version of the cached arrays. It changes whenever the same documents give other arrays."""

_log = logging.getLogger(__name__)


def tokenize_made(name: str, config: DataConfig, tokenizer: Tokenizer) -> ArrayFolder:
    """The documents of source `name`. The arrays are those of `tokenize_trajectories`; no document has decisions, a
    context or an outcome. Raises InputError for a tokenizer or a length of rows that they do not fit."""
    source = config.sources[name]
    assert isinstance(source, MadeSource)
    path = config.cached("tokens", ["made", LAYOUT, tokenizer.fingerprint, source.identity()])

    def build(folder: pathlib.Path) -> None:
        _log.info("making the documents of source %s in %s", name, path)
        with RunColumns(folder, tokenizer) as columns, TokenizationProgress(name) as progress:
            for block in source.blocks(name, tokenizer):
                columns.add_documents(*block)
                progress.update(columns.tokens, columns.trajectories)
        seal(folder, columns.dtypes, {"empty_documents": 0})

    store = build_once(path, build)
    offsets = store["offsets"]
    if (longest := int((offsets[1:] - offsets[:-1]).max())) > config.sequence_length:
        raise InputError(f"data.sequence_length: {config.sequence_length}; expected at least {longest}, the longest "
                         f"document of source {name}, which is not cut")  # fmt: skip
    return store
