"""`maverick data prepare | inspect | stats`: tokenizes ahead of time, shows rows, counts.

Each verb returns its result as one JSON-serializable dict, which `show` prints for people.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.config import DataConfig
from data.finding import listed
from data.policy import violations_in_words
from data.rows.dataset import Dataset, SourceRows, open_dataset
from data.rows.fields import FIELDS, Row
from data.rows.pairs import PairPlan
from data.rows.shown import budget_counts, in_words, picture_counts, pictures_of_row
from data.rows.weighing import KINDS, NO_KIND
from data.rows.windows import Windowed
from data.sources.files import PathSource
from data.trajectories.decisions import CLASSES, Decision
from data.trajectories.kinds import TokenKind
from data.trajectories.reading import RecordProblem
from maverick_jax.errors import harmless
from maverick_jax.text import Tokenizer

UNKNOWN_SHOWN = 20
"""Most names of unknown fields that are printed."""
SEGMENT_STYLES = ("cyan", "green", "yellow", "magenta", "blue")
KIND_STYLES = {
    **dict.fromkeys(("header", "system", "tools", "image"), "white"),
    "user": "blue",
    "observation": "cyan",
    "observation_error": "red",
    "thought": "magenta",
    "decision": "bold yellow",
    "text": "green",
    "final_answer": "bold green",
    "call_syntax": "yellow",
    "call_name": "bold bright_yellow",
    "call_arguments": "bright_yellow",
    "failed_action": "bold red",
    "recovery": "bold bright_green",
    "control": "bright_magenta",
    "document": "default",
}
LEARNED = "\u27e6", "\u27e7"
"""Mark learned tokens where there are no colors."""
# Text from files may contain terminal commands, so control characters are replaced by their Unicode pictures.
_PICTURES = {c: chr(0x2400 + c) for c in range(0x20) if c not in (0x09, 0x0A)}
_PICTURES |= {0x7F: "\u2421"} | {c: "\ufffd" for c in range(0x80, 0xA0)}


def prepare(config: DataConfig, seed: int) -> dict[str, Any]:
    """Tokenizes and packs every source into the cache. Raises InputError for a source that cannot be read."""
    return {"cache": str(config.cache), **stats(config, seed)}


def stats(config: DataConfig, seed: int) -> dict[str, Any]:
    """Counts by split and source: documents, tokens, rows of one epoch, the fraction of rows that is not padding, and
    the share of the stream; for trajectories also read records, cuts, decisions, and tokens and loss weights by token
    kind (which requires reading every row); for pictures also their number, bytes and tiles, and the fill of the rows'
    tiles and of the steps' tile budgets."""
    datasets = {"train": open_dataset(config, "train", seed=seed)}
    if config.holds_out:
        datasets["eval"] = open_dataset(config, "eval", seed=seed)
    tokenizer = datasets["train"].tokenizer
    return {
        "tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size},
        "sequence_length": config.sequence_length,
        "batch_size": config.batch_size,
        "packing": config.packing,
        "left_out": _left_out(config),
        "splits": {split: _split_stats(dataset) for split, dataset in datasets.items()},
    }


def _left_out(config: DataConfig) -> dict[str, dict[str, str]]:
    """By source: the files at its paths that are not read, and why; sources that read all are not there."""
    paths = {name: source.found(name) for name, source in config.sources.items() if isinstance(source, PathSource)}
    found = {name: {k: v for files in parts for k, v in files.left_out.items()} for name, parts in paths.items()}
    return {name: files for name, files in found.items() if files}


def _split_stats(dataset: Dataset) -> dict[str, Any]:
    shares = dataset.shares
    sources = {source.name: _source_stats(source, shares[source.name]) for source in dataset.sources}
    tokens, rows = (sum(s[key] for s in sources.values()) for key in ("tokens", "rows"))
    return {
        "fingerprint": dataset.fingerprint,
        "documents": sum(s["documents"] for s in sources.values()),
        "tokens": tokens,
        "rows": rows,
        "fill": sum(s["fill"] * s["rows"] for s in sources.values()) / rows,
        "steps_per_epoch": rows / dataset.config.batch_size,
        "sources": sources,
        **({"tile_budgets": _budgets(dataset)} if any("pictures" in s for s in sources.values()) else {}),
    }


def _budgets(dataset: Dataset) -> dict[str, Any]:
    def num_tiles(index: int) -> int:
        source, at = dataset.locate(index)
        return source.num_tiles(at)

    size = dataset.config.batch_size
    return budget_counts(dataset.tile_budgets(size), num_tiles, size, dataset.num_rows())


def _source_stats(source: SourceRows, share: float) -> dict[str, Any]:
    plan = source.plan
    cuts = plan.cuts if isinstance(plan, Windowed) else {}
    counts = {
        "documents": len(source.documents),
        "empty_documents": source.store.meta["empty_documents"],
        **{key: source.store.meta[key] for key in ("contaminated",) if key in source.store.meta},
        "tokens": plan.num_tokens,
        "rows": plan.num_rows,
        "fill": (plan.num_tokens + cuts.get("repeated_tokens", 0)) / (plan.num_rows * source.length),
        "share": share,
    }
    if isinstance(plan, PairPlan):
        found = {"read": source.store.meta["read"], "pairs": _pairs(source, plan), "kinds": _kinds(source)}
        return counts | {"documents": plan.pairs.size} | found
    if not cuts:
        return counts
    read = source.store.meta["runs" if source.tiles is None else "samples"]
    found = {"read": read, "cut": cuts, "kinds": _kinds(source), "decisions": _decisions(source)}
    shown = picture_counts(source)
    return counts | found | ({} if shown is None else {"pictures": shown})


def _pairs(source: SourceRows, plan: PairPlan) -> dict[str, int]:
    """The number of pairs in rows, of their tasks, of single sides among them, of pairs that do not fit into a row, and
    of pairs by what made them in all splits."""
    mismatched = source.store["mismatched"][plan.pairs] > 0
    own = plan.pairs[~mismatched]
    sizes = np.diff(source.store["offsets"]).reshape(-1, 2)[own]
    tasks = np.unique(source.store["task"][own]).size
    made = {f"made by {name}": n for name, n in source.store.meta["pairs"]["origins"].items()}
    found = {"pairs": int((sizes > 0).all(axis=1).sum()), "single_sides": int((sizes == 0).any(axis=1).sum())}
    found |= {"mismatched": int(mismatched.sum())} if mismatched.any() else {}
    return found | {"tasks": tasks, **plan.counts, "tokens_chosen": int(sizes[:, 0].sum()),
                    "tokens_rejected": int(sizes[:, 1].sum()), **made}  # fmt: skip


def _decisions(source: SourceRows) -> dict[str, int]:
    """The number of turns by decision, and of trajectories that have tools and no call."""
    of_runs = slice(source.documents.start, source.documents.stop)
    turns = source.store["decisions"].reshape(-1, len(CLASSES))[of_runs]
    without = (source.store["tools"][of_runs] > 0) & (turns[:, Decision.CALL - 1] == 0)
    return dict(zip(CLASSES, turns.sum(axis=0).tolist(), strict=True)) | {"runs_without_call": int(without.sum())}


def _kinds(source: SourceRows) -> dict[str, dict[str, float]]:
    """By token kind: the number of labels in one epoch, and the sum of their loss weights."""
    tokens, weights = np.zeros(len(TokenKind), np.int64), np.zeros(len(TokenKind))
    for index in range(source.plan.num_rows):
        row = source.row(index)
        there = row[KINDS] != NO_KIND
        kinds = row[KINDS][there]
        tokens += np.bincount(kinds, minlength=tokens.size)
        weights += np.bincount(kinds, row["loss_weights"][there], minlength=tokens.size)
    found = zip(TokenKind, tokens.tolist(), weights.tolist(), strict=True)
    return {kind.name.lower(): {"tokens": count, "weight": weight} for kind, count, weight in found if count}


def inspect(
    config: DataConfig, seed: int, *, first: int = 0, count: int = 2, thumbnails: bool = False
) -> dict[str, Any]:
    """Rows `first` to `first + count - 1` of the training stream, as spans of tokens of one segment and loss weight,
    and their pictures. `thumbnails`: also small copies of these."""
    dataset = open_dataset(config, "train", seed=seed)
    return {"rows": [_row_found(dataset, index, thumbnails) for index in range(first, first + count)]}


def _row_found(dataset: Dataset, index: int, thumbnails: bool) -> dict[str, Any]:
    source, at = dataset.locate(index)
    row, pictures = dataset.row(index), pictures_of_row(source, at, thumbnails=thumbnails)
    found = {
        "row": index,
        "source": source.name,
        "epoch": at // source.plan.num_rows,
        "tokens": int((row["segment_ids"] > 0).sum()),
        "length": source.length,
        "trained": float(row["loss_weights"].sum()),
        "runs": list(_spans(row, dataset.tokenizer, pictures)),
    }
    return found | ({} if source.tiles is None else {"pictures": pictures})


def _spans(row: Row, tokenizer: Tokenizer, pictures: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Spans of consecutive tokens with equal segment, loss weight, role (text or control) and, for trajectories, token
    kind, without padding. Each picture is a span, with its number in the row and a description as its text."""
    controls = set(tokenizer.controls.values())
    columns = [row[key].tolist() for key in ("segment_ids", "loss_weights", "tokens")]
    columns.append(_own_kinds(row) if KINDS in row else [None] * len(columns[0]))
    sides = _sides(row)
    if KINDS in row:  # shown at the token itself, as kinds are, and not at the position that predicts it
        columns[1] = [0.0, *columns[1][:-1]]
    columns.append(_of_pictures(len(columns[0]), pictures))
    places = ((segment, weight, token in controls, kind, picture, token) for segment, weight, token, kind, picture
              in zip(*columns, strict=True) if segment)  # fmt: skip
    for (segment, weight, control, kind, picture), run in itertools.groupby(places, key=lambda k: k[:5]):
        ids = [token for *_, token in run]
        found = {
            "segment": segment,
            "loss_weight": weight,
            "role": "control" if control else "text",
            "tokens": len(ids),
            "text": tokenizer.decode(ids, controls=True) if picture is None else in_words(pictures[picture]),
        }
        found |= {"kind": kind} if KINDS in row else {}
        found |= {"side": sides[segment]} if segment in sides else {}
        yield found | ({} if picture is None else {"picture": picture})


def _of_pictures(length: int, pictures: Sequence[dict[str, Any]]) -> list[int | None]:
    """For each place the number of its picture, if it has one."""
    found: list[int | None] = [None] * length
    for number, picture in enumerate(pictures):
        begin, end = picture["place"], picture["place"] + picture["tokens"]
        found[begin:end] = [number] * (end - begin)
    return found


def _sides(row: Row) -> dict[int, str]:
    """Segment of a side of a pair -> `pair 1, chosen`; empty for rows without pairs."""
    if "sides" not in row:
        return {}
    there = row["sides"] > 0
    found = zip(row["segment_ids"][there].tolist(), row["pair_ids"][there].tolist(), row["sides"][there].tolist(),
                strict=True)  # fmt: skip
    return {segment: f"pair {pair}, {FIELDS['sides'].values[side]}" for segment, pair, side in found}


def _own_kinds(row: Row) -> list[str | None]:
    """The name of each token's kind, which the row stores at the position before it. None: the token is not a label,
    because it is repeated or the first of its trajectory."""
    labels = [NO_KIND, *row[KINDS][:-1].tolist()]
    return [None if kind == NO_KIND else TokenKind(kind).name.lower() for kind in labels]


# ---- display -------------------------------------------------------------------------------------------------------


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Prints the result of a verb of this module."""
    console = console or Console()
    if "rows" in found:
        _show_rows(found, console)
        return
    if "cache" in found:
        console.print(f"cache: {found['cache']}", markup=False, highlight=False)
    for name, files in found.get("left_out", {}).items():
        text = harmless(f"{name}: {len(files):,} files left out: {listed(files)}")
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    for split, counts in found["splits"].items():
        console.print(_table(split, counts))
        for name, source in counts["sources"].items():
            if "kinds" in source:
                _show_kinds(f"{name}, {split}", source, console)
        if budgets := counts.get("tile_budgets"):
            steps = ", ".join(f"{budget} in {n:,} steps" for budget, n in budgets["steps"].items())
            console.print(f"tile budgets of {split}: {steps}; padding of the median step: "
                          f"{budgets['median_padding']:.1%}", markup=False, highlight=False)  # fmt: skip


def _show_kinds(title: str, source: dict[str, Any], console: Console) -> None:
    table = Table("kind", title=Text(title))
    for column in ("tokens", "share", "weight"):
        table.add_column(column, justify="right")
    total = sum(kind["tokens"] for kind in source["kinds"].values())
    for name, kind in source["kinds"].items():
        table.add_row(name, f"{kind['tokens']:,}", f"{kind['tokens'] / total:.2%}", f"{kind['weight']:,.1f}")
    console.print(table)
    for name in [name for name in ("read", "pairs", "cut", "decisions") if name in source]:
        counts = ", ".join(f"{key.replace('_', ' ')} {n:,}" for key, n in source[name].items() if isinstance(n, int))
        console.print(f"{name}: {counts}", markup=False, highlight=False)
    if shown := source.get("pictures"):
        console.print(f"pictures: {shown['shown']:,} shown, {shown['different']:,} different of {shown['bytes']:,} "
                      f"bytes, {shown['tiles']:,} tiles; rows have up to {shown['most_in_row']:,} tiles, "
                      f"{shown['fill']:.1%} of that in the mean", markup=False, highlight=False)  # fmt: skip
    if refused := source["read"].get("refused"):
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in refused.items())
        console.print(f"samples refused: {reasons}", markup=False, highlight=False)
    if chosen := source["read"].get("chosen"):
        rules = ", ".join(f"{rule} {n['dropped']:,}" for rule, n in chosen["rules"].items() if n["dropped"])
        console.print(
            f"kept: {chosen['kept']:,} of {chosen['read']:,} trajectories; dropped: {rules or 'none'}", markup=False
        )
    for line in violations_in_words(source["read"].get("violations")):
        console.print(harmless(line), markup=False, highlight=False)
    if unknown := source["read"].get("unknown_fields"):
        names = ", ".join(f"{name} ({n:,})" for name, n in itertools.islice(unknown.items(), UNKNOWN_SHOWN))
        more = f", and {len(unknown) - UNKNOWN_SHOWN} more" if len(unknown) > UNKNOWN_SHOWN else ""
        console.print(harmless(f"fields without effect: {names}{more}"), markup=False, highlight=False)
    for problem in source["read"]["problems"]:
        console.print(harmless(f"malformed: {RecordProblem(**problem)}"), markup=False, highlight=False)


def _show_rows(found: dict[str, Any], console: Console) -> None:
    kinds = any("kind" in run for row in found["rows"] for run in row["runs"])
    plain = console.color_system is None  # a pipe, a file, a notebook: there colors say nothing
    console.print(_plain_legend() if plain else _kinds_legend(found["rows"]) if kinds else _segments_legend())
    for row in found["rows"]:
        console.rule(Text(f"row {row['row']} of {row['source']}, epoch {row['epoch']}: {row['tokens']}/{row['length']} "
                          f"tokens, {row['trained']:g} trained"))  # fmt: skip
        console.print(_marked(row["runs"]) if plain else _colored(row["runs"]))


def _plain_legend() -> Text:
    opening, closing = LEARNED
    return Text(
        f"{opening}text{closing}: learned tokens; {opening}2:text{closing}: with loss weight 2; | starts a segment"
    )


def _marked(runs: list[dict[str, Any]]) -> Text:
    """The text of a row. Brackets enclose learned tokens, after their loss weight unless it is 1."""
    opening, closing = LEARNED
    text, segment, weight = Text(), None, 0.0
    for run in [*runs, {"segment": None, "loss_weight": 0.0, "text": ""}]:
        same = run["segment"] == segment
        if weight and not (same and run["loss_weight"] == weight):
            text.append(closing)
        if not same and run["segment"] is not None:
            text.append(f"|{run['side']}: " if "side" in run else "|")
        if run["loss_weight"] and not (same and run["loss_weight"] == weight):
            text.append(opening if run["loss_weight"] == 1 else f"{opening}{run['loss_weight']:g}:")
        text.append(run["text"].translate(_PICTURES))
        segment, weight = run["segment"], run["loss_weight"]
    return text


def _segments_legend() -> Text:
    legend = Text("one color per segment; ").append("control token", "reverse").append("; ")
    return legend.append("no loss", "strike").append(" (the token has no label)")


def _colored(runs: list[dict[str, Any]]) -> Text:
    text, segment = Text(), None
    for run in runs:
        if "side" in run and run["segment"] != segment:
            text.append(f"\n[{run['side']}] ", "bold")
        segment = run["segment"]
        style = _style(run) + (" reverse" if run["role"] == "control" else "")
        text.append(run["text"].translate(_PICTURES), style)
    return text


def _style(run: dict[str, Any]) -> str:
    """The color of a segment, struck out where the loss weight is 0; for trajectories the color of a token kind, dimmed
    where it is 0."""
    if "kind" in run:
        return KIND_STYLES.get(run["kind"], "default") + (" dim" if run["loss_weight"] == 0 else "")
    style = SEGMENT_STYLES[(run["segment"] - 1) % len(SEGMENT_STYLES)]
    return style + (" strike" if run["loss_weight"] == 0 else "")


def _kinds_legend(rows: list[dict[str, Any]]) -> Text:
    """Token kinds in their colors, with their loss weights in these rows."""
    runs = [run for row in rows for run in row["runs"] if run.get("kind")]
    weights: dict[str, set[float]] = {}
    for run in runs:
        weights.setdefault(run["kind"], set()).add(run["loss_weight"])
    text = Text("one color per token kind, with its loss weights: ")
    for name, found in weights.items():
        text.append(
            f"{name} {', '.join(f'{w:g}' for w in sorted(found))}", _style({"kind": name, "loss_weight": max(found)})
        )
        text.append("; ")
    return text.append("dim", "dim").append(": no loss")


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
