"""The closed form of a plan beside what its compiled step takes."""

from collections.abc import Mapping
from typing import Any

from launch.units import in_bytes

KINDS = {
    "all-gather": "gather",
    "reduce-scatter": "reduce_scatter",
    "all-reduce": "all_reduce",
    "all-to-all": "all_to_all",
    "ragged-all-to-all": "all_to_all",
    "collective-permute": "permute",
}
"""The closed form's name of a kind of collective."""


def comparison(
    compiled: dict[str, Any], time: dict[str, Any], held: Mapping[str, int], sent: Mapping[str, int]
) -> dict[str, dict[str, float | None]]:
    """Closed form, compiled step, and their ratio, by quantity: the peak in bytes, bytes sent by kind, FLOPs done,
    seconds of computation and of the step. `time`, bytes `held` and bytes `sent` are the closed form's; what the
    engine holds to sample episodes is no part of the step."""
    pairs = {"peak": (sum(held.values()) - held.get("sampling", 0), compiled["bytes"]["peak"])}
    for kind, closed in sent.items():
        found = [e["bytes"] for name, e in compiled["collectives"].items() if KINDS.get(name.split()[0]) == kind]
        pairs[kind] = closed, sum(found)
    pairs["flops"] = time["flops_done"], compiled["flops"]["done"]
    pairs["compute"] = time["compute"], compiled["seconds"]["compute"]
    pairs["step"] = time["step"], compiled["seconds"]["step"]
    return {
        name: {"closed_form": closed, "compiled": real, "ratio": closed / real if real else None}
        for name, (closed, real) in pairs.items()
        if closed or real
    }


def rows(found: dict[str, dict[str, float | None]]) -> list[tuple[str, str]]:
    """The lines of the plan's table."""
    lines = [("closed / compiled", "ratio")]
    for name, entry in found.items():
        text = {"flops": lambda n: f"{n / 1e12:,.4g} TFLOP", "compute": _seconds, "step": _seconds}.get(name, in_bytes)
        ratio = "" if entry["ratio"] is None else f"{entry['ratio']:.3f}"
        lines.append((f"  {name}", f"{text(entry['closed_form'])} / {text(entry['compiled'])}  {ratio}".rstrip()))
    return lines


def _seconds(n: float) -> str:
    return f"{n:.3g} s"
