"""What a run says of an evaluation: one sentence."""

from typing import Any

from maverick_jax.progress import duration

FEW = 4
"""Most values of a dict that a sentence lists."""


def sentence(result: dict[str, Any], seconds: float) -> str:
    """`held-out loss 7.4532 over 25,600 labels, teacher loss 6.9180 (3 s)`, of what an evaluation returns. Metrics of
    many values are named, and left to the metrics file."""
    rest = {name.removeprefix("eval_"): value for name, value in result.items()}
    labels = rest.pop("tokens", None)
    parts, left = [], []
    if "loss" in rest:
        parts.append(f"held-out loss {_shown(rest.pop('loss'))}" + (f" over {_shown(labels)} labels" if labels else ""))
    for name, value in rest.items():
        said = name.replace("_", " ")
        if not isinstance(value, dict):
            parts.append(f"{said} {_shown(value)}")
        elif len(value) <= FEW and not any(isinstance(inner, dict) for inner in value.values()):
            listed = ", ".join(f"{inner.replace('_', ' ')} {_shown(number)}" for inner, number in value.items())
            parts.append(f"{said} ({listed})")
        else:
            left.append(said)
    if left:
        parts.append(f"and {', '.join(left)} in metrics.jsonl")
    return f"{', '.join(parts) or 'evaluated'} ({f'{seconds:.1f} s' if seconds < 10 else duration(seconds)})"


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, str | bool):
        return str(value)
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    return f"{number:,}" if isinstance(number, int) else f"{float(number):.4f}" if isinstance(number, float) else "..."
