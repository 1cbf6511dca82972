#!/usr/bin/env python
"""Render the result tables of docs/results/benchmarks.md from `results/*.json`.

python benchmarks/render.py
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "results" / "benchmarks.md"
BEGIN, END = "<!-- results: rendered by render.py -->", "<!-- end of results -->"

Result = dict[str, Any]
Column = Callable[[Result], str]

TRAIN_STEP: dict[str, Column] = {
    "shape": lambda r: r["shape"] + (", packed" if r["packed"] else ""),
    "dtype": lambda r: r["dtype"],
    "remat": lambda r: r["remat"],
    "s/step": lambda r: f"{r['step_seconds']:.3g}",
    "CPU s/step": lambda r: f"{r['step_cpu_seconds']:.3g}",
    "tokens/s": lambda r: f"{r['tokens_per_second']:,.0f}",
    "of matrix rate": lambda r: f"{r['fraction_of_peak']:.0%}",
    "GiB": lambda r: _gib(r["peak_memory_bytes"]),
    "compile s": lambda r: f"{r['compile_seconds']:.1f}",
    "first step CPU s": lambda r: f"{r['first_step_cpu_seconds']:.0f}",
    "against": lambda r: "-" if r["ratio"] is None else f"{r['against']} {r['versions'][r['against']]}",
    "its s/step": lambda r: "-" if r["ratio"] is None else f"{r['peer_step_seconds']:.3g}",
    "its GiB": lambda r: "-" if r["ratio"] is None else _gib(r["peer_peak_memory_bytes"]),
    "**time ratio**": lambda r: "-" if r["ratio"] is None else f"**{r['ratio']:.2f}**",
    "**memory ratio**": lambda r: "-" if r["ratio"] is None else f"**{r['peak_memory_ratio']:.2f}**",
    "load": lambda r: f"{r['load_average']:.1f}",
    "when": lambda r: r["started"][:10],
}
COMPILE_TIME: dict[str, Column] = {
    "layers": lambda r: " and ".join(map(str, r["layers"])),
    "lower + compile, CPU s": lambda r: " and ".join(f"{s:.1f}" for s in r["cpu_seconds"]),
    "wall s": lambda r: " and ".join(f"{s:.1f}" for s in r["seconds"]),
    "**ratio**": lambda r: f"**{r['ratio']:.2f}**",
    "load": lambda r: f"{r['load_average']:.1f}",
}
HOST_OVERHEAD: dict[str, Column] = {
    "host, ms per step": lambda r: f"**{r['host_seconds'] * 1e3:.2f}**",
    "of which dispatch": lambda r: f"{r['dispatch_seconds'] * 1e3:.2f}",
    "wall, ms per step": lambda r: f"{r['step_seconds'] * 1e3:.2f}",
    "load": lambda r: f"{r['load_average']:.1f}",
}
GROUPED_PRODUCT: dict[str, Column] = {
    "device": lambda r: r["device"],
    "kernel": lambda r: r["kernel"],
    "rows x model x hidden x experts": lambda r: " x ".join(
        f"{r[name]:,}" for name in ("rows", "model", "hidden", "experts")
    ),
    "plain product, TFLOP/s": lambda r: f"{r['plain_flops_per_second'] / 1e12:,.3g}",
    "TFLOP/s": lambda r: ", ".join(f"{name} {rate / 1e12:,.3g}" for name, rate in r["flops_per_second"].items()),
    "**ratio**": lambda r: ", ".join(f"**{ratio:.2f}**" for ratio in r["ratios"].values()),
    "load": lambda r: f"{r['load_average']:.1f}",
}
IMAGES: dict[str, Column] = {
    "pixels": lambda r: _pictures(r, lambda p: "x".join(map(str, p["size"]))),
    "ms": lambda r: _pictures(r, lambda p: f"{p['seconds'] * 1e3:.0f}"),
    "CPU ms": lambda r: _pictures(r, lambda p: f"{p['cpu_seconds'] * 1e3:.0f}"),
    "against": lambda r: f"transformers {r['versions']['transformers']}",
    "its ms": lambda r: _pictures(r, lambda p: f"{p['peer_seconds'] * 1e3:.0f}"),
    "its CPU ms": lambda r: _pictures(r, lambda p: f"{p['peer_cpu_seconds'] * 1e3:.0f}"),
    "**time ratio**": lambda r: _pictures(r, lambda p: f"**{p['ratio']:.2f}**"),
    "load": lambda r: f"{r['load_average']:.1f}",
}
PICTURE_PIPELINE: dict[str, Column] = {
    "photographs, tiles": lambda r: f"{r['pictures']}, {r['tiles']}",
    "per second": lambda r: f"{r['per_second']:.1f}",
    "per CPU second": lambda r: f"{r['per_cpu_second']:.1f}",
    "against": lambda r: f"transformers {r['versions']['transformers']} in a loop",
    "its per second": lambda r: f"{r['peer_per_second']:.1f}",
    "its per CPU second": lambda r: f"{r['peer_per_cpu_second']:.1f}",
    "**rate ratio**": lambda r: f"**{r['ratio']:.2f}**",
    "**memory per byte of pixels**": lambda r: f"**{r['memory_ratio']:.2f}**",
    "load": lambda r: f"{r['load_average']:.1f}",
}
TOKENIZATION: dict[str, Column] = {
    "characters per document": lambda r: _sizes(r, lambda s: f"{s['characters']:,}", " / "),
    "million per second": lambda r: _sizes(r, lambda s: f"{s['ours'] / 1e6:.1f}"),
    "against": lambda r: f"tiktoken {r['versions']['tiktoken']}",
    "its million per second": lambda r: _sizes(r, lambda s: f"{s['tiktoken'] / 1e6:.1f}"),
    "**rate ratio**": lambda r: _sizes(r, lambda s: f"**{s['ratio']:.2f}**"),
    "threads": lambda r: str(r["threads"]),
    "load": lambda r: f"{r['load_average']:.1f}",
}
INTERCHANGE: dict[str, Column] = {
    "": lambda r: r["which"],
    "GB": lambda r: f"{r['bytes'] / 1e9:.1f}",
    "s": lambda r: f"{r['seconds']:.1f}",
    "MB/s": lambda r: f"{r['bytes_per_second'] / 1e6:.0f}",
    "a copy's MB/s": lambda r: f"{r['copy_bytes_per_second'] / 1e6:.0f}",
    "**rate ratio**": lambda r: f"**{r['ratio']:.2f}**",
    "peak GiB": lambda r: _gib(r["peak_bytes"]),
    "load": lambda r: f"{r['load_average']:.1f}",
    "when": lambda r: r["started"],
}
DISTILLATION: dict[str, Column] = {
    "student's step, s": lambda r: f"{r['pretrain_seconds']:.3f}",
    "teacher's forward, s": lambda r: f"{r['teacher_seconds']:.3f}",
    "online step, s": lambda r: f"{r['online_seconds']:.3f}",
    "offline step, s": lambda r: f"{r['offline_seconds']:.3f}",
    "**online over student + teacher**": lambda r: f"**{r['online_ratio']:.2f}**",
    "**offline over student**": lambda r: f"**{r['offline_ratio']:.2f}**",
    "peak GiB at V = 202,048": lambda r: _gib(r["online_peak_bytes"]),
    "of pretraining + teacher": lambda r: _gib(r["pretrain_peak_bytes"] + r["teacher_bytes"]),
    "**memory ratio**": lambda r: f"**{r['memory_ratio']:.2f}**",
    "load": lambda r: f"{r['load_average']:.1f}",
}
ENGINE: dict[str, Column] = {
    "shape": lambda r: r["shape"],
    "parameters": lambda r: f"{r['parameters'] / 1e6:.3g}M",
    "answers alike": lambda r: f"{r['answers_alike']} of {r['requests']}",
    "tokens/s": lambda r: f"{r['tokens_per_second']:,.0f}",
    "transformers' tokens/s": lambda r: f"{r['peer_tokens_per_second']:,.0f}",
    "**rate ratio**, of CPU time": lambda r: f"**{r['ratio']:.1f}**, {r['cpu_ratio']:.1f}",
    "**to one at a time**, of CPU time": lambda r: (
        f"**{r['ratio_to_one_at_a_time']:.1f}**, {r['cpu_ratio_to_one_at_a_time']:.1f}"
    ),
    "ms per step": lambda r: f"{r['step_seconds'] * 1e3:.3g}",
    "host, CPU ms per step": lambda r: _milliseconds(r["host_cpu_seconds_per_step"]),
    "of copy bandwidth": lambda r: f"{r['fraction_of_bandwidth']:.0%}",
    "load": lambda r: f"{r['load_average']:.1f}",
    "when": lambda r: r["started"][:10],
}
TABLES = {
    "train_step": ("Train step", TRAIN_STEP),
    "compile_time": ("Compile time", COMPILE_TIME),
    "host_overhead": ("Host overhead", HOST_OVERHEAD),
    "grouped_product": ("Grouped product", GROUPED_PRODUCT),
    "images": ("Images", IMAGES),
    "picture_pipeline": ("Pictures to rows", PICTURE_PIPELINE),
    "tokenization": ("Tokenization", TOKENIZATION),
    "interchange": ("Import and export", INTERCHANGE),
    "distillation": ("Distillation", DISTILLATION),
    "engine": ("Engine", ENGINE),
}


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _pictures(result: Result, cell: Callable[[dict[str, Any]], str]) -> str:
    return ", ".join(cell(picture) for picture in result["pictures"].values())


def _sizes(result: Result, cell: Callable[[dict[str, Any]], str], joint: str = ", ") -> str:
    return joint.join(cell(size) for size in result["sizes"])


def render(results: list[Result]) -> str:
    """Markdown with a table for each kind of benchmark that has results."""
    parts = []
    for kind, (title, columns) in TABLES.items():
        rows = [[cell(result) for cell in columns.values()] for result in results if result["benchmark"] == kind]
        if rows:
            lines = [list(columns), ["---"] * len(columns), *rows]
            parts.append(f"### {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) or "No results yet."


def render_page() -> None:
    """Replace the tables between the two markers of the page."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{render(results)}\n\n{END}{after}")


if __name__ == "__main__":
    render_page()
