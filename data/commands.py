"""`maverick data prepare | inspect | stats`: tokenise ahead of time, look at rows, count.

Each verb returns what it found as one JSON-able dict; `show` prints that for a person.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.config import DataConfig
from data.dataset import Dataset, SourceRows, open_dataset
from data.packing import Row
from maverick_jax.text import Tokenizer

SEGMENT_STYLES = ("cyan", "green", "yellow", "magenta", "blue")
# Text from files may hold terminal commands: control characters are shown as pictures, never sent.
_PICTURES = {c: chr(0x2400 + c) for c in range(0x20) if c not in (0x09, 0x0A)}
_PICTURES |= {0x7F: "\u2421"} | {c: "\ufffd" for c in range(0x80, 0xA0)}


def prepare(config: DataConfig, seed: int) -> dict[str, Any]:
    """Tokenise and pack every source into the cache. Raises InputError for a source that cannot be read."""
    return {"cache": str(config.cache), **stats(config, seed)}


def stats(config: DataConfig, seed: int) -> dict[str, Any]:
    """Counts by split and source: documents, tokens, rows of one epoch, how full rows are, share of the stream."""
    datasets = {"train": open_dataset(config, "train", seed=seed)}
    if config.held_out_fraction:
        datasets["eval"] = open_dataset(config, "eval", seed=seed)
    tokenizer = datasets["train"].tokenizer
    return {
        "tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size},
        "sequence_length": config.sequence_length,
        "batch_size": config.batch_size,
        "packing": config.packing,
        "splits": {split: _split_stats(dataset) for split, dataset in datasets.items()},
    }


def _split_stats(dataset: Dataset) -> dict[str, Any]:
    shares = dataset.shares
    sources = {source.name: _source_stats(source, shares[source.name]) for source in dataset.sources}
    tokens, rows = (sum(s[key] for s in sources.values()) for key in ("tokens", "rows"))
    return {
        "fingerprint": dataset.fingerprint,
        "documents": sum(s["documents"] for s in sources.values()),
        "tokens": tokens,
        "rows": rows,
        "fill": tokens / (rows * dataset.config.sequence_length),
        "steps_per_epoch": rows / dataset.config.batch_size,
        "sources": sources,
    }


def _source_stats(source: SourceRows, share: float) -> dict[str, Any]:
    plan = source.plan
    return {
        "documents": source.num_documents,
        "empty_documents": source.store.meta["empty_documents"],
        "tokens": plan.num_tokens,
        "rows": plan.num_rows,
        "fill": plan.num_tokens / (plan.num_rows * source.length),
        "share": share,
    }


def inspect(config: DataConfig, seed: int, *, first: int = 0, count: int = 2) -> dict[str, Any]:
    """Rows `first` to `first + count - 1` of the training stream, as runs of tokens alike in segment and weight."""
    dataset = open_dataset(config, "train", seed=seed)
    return {"rows": [_row_found(dataset, index) for index in range(first, first + count)]}


def _row_found(dataset: Dataset, index: int) -> dict[str, Any]:
    source, at = dataset.locate(index)
    row = dataset.row(index)
    return {
        "row": index,
        "source": source.name,
        "epoch": at // source.plan.num_rows,
        "tokens": int((row["segment_ids"] > 0).sum()),
        "length": source.length,
        "trained": float(row["loss_weights"].sum()),
        "runs": list(_runs(row, dataset.tokenizer)),
    }


def _runs(row: Row, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Runs of tokens of one segment, loss weight and kind (text or control), padding left out."""
    controls = set(tokenizer.controls.values())
    columns = zip(*[row[key].tolist() for key in ("segment_ids", "loss_weights", "tokens")], strict=True)
    kinds = ((segment, weight, token in controls, token) for segment, weight, token in columns if segment)
    for (segment, weight, control), run in itertools.groupby(kinds, key=lambda k: k[:3]):
        ids = [token for *_, token in run]
        yield {
            "segment": segment,
            "loss_weight": weight,
            "role": "control" if control else "text",
            "tokens": len(ids),
            "text": tokenizer.decode(ids, controls=True),
        }


# ---- for a person --------------------------------------------------------------------------------------------------


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what a verb of this module has returned."""
    console = console or Console()
    if "rows" in found:
        _show_rows(found, console)
        return
    if "cache" in found:
        console.print(f"cache: {found['cache']}", markup=False, highlight=False)
    for split, counts in found["splits"].items():
        console.print(_table(split, counts))


def _show_rows(found: dict[str, Any], console: Console) -> None:
    legend = Text("one colour per segment; ").append("control token", "reverse").append("; ")
    console.print(legend.append("no loss", "strike").append(" (the token has no label)"))
    for row in found["rows"]:
        console.rule(Text(f"row {row['row']} of {row['source']}, epoch {row['epoch']}: {row['tokens']}/{row['length']} "
                          f"tokens, {row['trained']:g} trained"))  # fmt: skip
        console.print(_coloured(row["runs"]))


def _coloured(runs: list[dict[str, Any]]) -> Text:
    text = Text()
    for run in runs:
        style = SEGMENT_STYLES[(run["segment"] - 1) % len(SEGMENT_STYLES)]
        style += " reverse" if run["role"] == "control" else ""
        style += " strike" if run["loss_weight"] == 0 else ""
        text.append(run["text"].translate(_PICTURES), style)
    return text


def _table(split: str, counts: dict[str, Any]) -> Table:
    columns = ("documents", "tokens", "rows", "fill", "share")
    table = Table(title=Text(f"{split} ({counts['steps_per_epoch']:.1f} steps per epoch)"))
    table.add_column("source")
    for column in columns:
        table.add_column(column, justify="right")
    lines = [*counts["sources"].items(), ("total", {**counts, "share": 1.0})]
    for name, line in lines:
        cells = [f"{line[c]:,}" if isinstance(line[c], int) else f"{line[c]:.2%}" for c in columns]
        table.add_row(Text(name), *cells)
    return table
