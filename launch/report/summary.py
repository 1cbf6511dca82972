"""What a report says of a run in words and numbers; no HTML here.

All values come from the run's files, which are untrusted: no value is assumed to have the right type.
"""

import math
from typing import Any

import numpy as np

from launch.report.metrics import SHARE
from launch.report.plots import constants
from launch.report.run_record import Line, RunRecord, number, series
from launch.report.stages import stages_of
from maverick_jax.errors import InputError
from maverick_jax.settings import strict_yaml

ALMOST_NOTHING = 0.005
"""A weight below this is written as 0.00."""
Rows = list[tuple[str, ...]]


def headline(record: RunRecord, config: dict[str, Any]) -> str:
    """The run in one line: step, loss and speed."""
    total = config.get("run.steps")
    if not record.lines:
        return "No metrics yet" + (f"; {total:,} steps planned" if type(total) is int else "")
    parts = [f"Step {record.lines[-1]['step']:,}" + (f" of {total:,}" if type(total) is int else "")]
    for name, lines, key in (
        ("loss", record.without_own_samples, "loss"),
        ("held-out loss", record.evaluations, "eval_loss"),
    ):
        if lines:
            parts.append(f"{name} {shown(lines[-1].get(key))}")
    _, rates = series(record.training, "tokens_per_second")
    if np.isfinite(rates).any():
        parts.append(f"{np.nanmedian(rates):,.0f} tokens/s")
    return ", ".join(parts)


def planned_steps(record: RunRecord) -> int | None:
    """`run.steps` of the run's config; None if there is none that can be read."""
    steps = config_values(record).get("run.steps")
    return steps if type(steps) is int else None


def config_values(record: RunRecord) -> dict[str, Any]:
    """Dotted key -> value of the config, of the keys in its sections; empty if it cannot be parsed."""
    try:
        data = strict_yaml.parse(record.config.content or "", "config.yaml").data
    except InputError:
        return {}
    sections = data.items() if isinstance(data, dict) else ()
    return {
        f"{name}.{key}": value for name, inner in sections if isinstance(inner, dict) for key, value in inner.items()
    }


def notes(record: RunRecord) -> list[str]:
    """Warnings for the top of the page."""
    found = []
    if record.unreadable:
        found.append(f"metrics.jsonl: {record.unreadable} line(s) could not be read and are not in this report")
    _, refused = series(record.training, "skipped")
    if np.isfinite(refused).any() and np.nanmax(refused) > 0:
        found.append(
            f"{np.nanmax(refused):,.0f} update(s) were skipped because loss or gradients were not finite or a spike"
        )
    _, losses = series(record.training, "loss")
    if np.isnan(losses).any():
        found.append(f"the loss of {np.isnan(losses).sum()} line(s) is not finite")
    return found + _of_targets(record.without_own_samples)


def _of_targets(lines: list[Line]) -> list[str]:
    """That the teacher's targets weigh nothing at the end, since when, and why."""
    steps, weights = series(lines, "soft_weight")
    if not weights.size or not weights[-1] < ALMOST_NOTHING:
        return []
    counted = np.flatnonzero(~(weights < ALMOST_NOTHING))
    since = int(steps[counted[-1] + 1]) if counted.size else int(steps[0])
    lead = number(lines[-1].get("lead_ema"))
    behind = f"is behind the student, by {-lead:.2f} nats per token on average" if lead <= 0 else ""
    losses = _losses(number(lines[-1].get("teacher_loss")), number(lines[-1].get("loss")))
    why = f"The teacher {behind}: its targets weigh" if behind else "The teacher's targets weigh"
    return [f"{why} 0.00 since step {since:,}{losses}. The student learns from the text alone."]


def _losses(teacher: float, student: float) -> str:
    return f" (teacher's loss {teacher:.2f}, student's {student:.2f})" if math.isfinite(teacher + student) else ""


# ---- the verdict -----------------------------------------------------------------------------------------------------


def verdict(record: RunRecord) -> list[str]:
    """What came of the run, in sentences."""
    return [*_of_held_out_loss(record), *_of_teacher(record)]


def _of_held_out_loss(record: RunRecord) -> list[str]:
    steps, losses = series(record.evaluations, "eval_loss")
    steps, losses = steps[np.isfinite(losses)], losses[np.isfinite(losses)]
    if losses.size < 2:
        return []
    best = int(np.argmin(losses))
    said = f"from {losses[0]:.2f} at step {steps[0]:,} to {losses[-1]:.2f} at step {steps[-1]:,}"
    if best == losses.size - 1:
        return [f"The loss on held-out text fell {said}, its lowest value."]
    worse = f"its lowest value was {losses[best]:.2f} at step {steps[best]:,}, and the model has got worse since"
    return [f"The loss on held-out text went {said}; {worse}."]


def _of_teacher(record: RunRecord) -> list[str]:
    held_out, training = record.evaluations, record.without_own_samples[-1:]
    found = []
    for where, lines, prefix in (("On held-out text", held_out, "eval_"), ("In training", training, "")):
        line = lines[-1] if lines else {}
        teacher, student = (number(line.get(prefix + name)) for name in ("teacher_loss", "loss"))
        if math.isfinite(teacher + student):
            ahead = f"{abs(student - teacher):.2f} nats per token"
            which = "behind" if student > teacher else "ahead of"
            found.append(f"{where} the student is {ahead} {which} its teacher ({student:.2f} and {teacher:.2f}).")
            break
    for line in training:
        soft, hard = number(line.get("soft_weight")), number(line.get("hard_weight"))
        if soft >= ALMOST_NOTHING and math.isfinite(hard):
            found.append(
                f"At step {line['step']:,} the teacher's targets weigh {soft:.2f} in the loss, and the text {hard:.2f}."
            )
    return found


def models(record: RunRecord, config: dict[str, Any], environment: Any) -> Rows:
    """Teacher and student of a distillation: name, parameters, losses and distance; the first row names the columns.
    Empty for other runs."""
    train, held_out = (lines[-1] if lines else {} for lines in (record.without_own_samples, record.evaluations))
    if "teacher_loss" not in train and "eval_teacher_loss" not in held_out:
        return []
    environment = environment if isinstance(environment, dict) else {}
    references = environment.get("references")
    teacher = references.get("teacher") if isinstance(references, dict) else None
    teacher = teacher if isinstance(teacher, dict) else {}
    distance = held_out.get("eval_divergence", train.get("divergence"))
    apart = f"{_short(distance)} nats from the teacher"
    path = teacher.get("path") or config.get("objective.teacher") or "stored targets"
    return [
        ("", "Model", "Parameters", "Active per token", "Training loss", "Held-out loss", "Agreement"),
        ("Teacher", str(path), *_sizes(teacher), *(_short(x) for x in (
            train.get("teacher_loss"), held_out.get("eval_teacher_loss"))), "-"),
        ("Student", record.name, *_sizes(environment), *(_short(x) for x in (
            train.get("loss"), held_out.get("eval_loss"))), apart),
    ]  # fmt: skip


def _sizes(found: dict[str, Any]) -> tuple[str, str]:
    return _millions(found.get("parameters")), _millions(found.get("active_parameters"))


def _millions(count: Any) -> str:
    value = number(count)
    if not 0 <= value < 1e18:
        return "-"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _short(value: Any) -> str:
    found = number(value)
    return f"{found:.3f}" if abs(found) < 1e6 else "-"


# ---- figures ---------------------------------------------------------------------------------------------------------


def facts(record: RunRecord, environment: Any) -> dict[str, tuple[str, str]]:
    """Name -> (value, remark) of the key figures."""
    found: dict[str, tuple[str, str]] = {}
    if record.without_own_samples:
        first, last = record.without_own_samples[0], record.without_own_samples[-1]
        start = f"from {shown(first.get('loss'))} at step {first['step']:,}"
        found["Training loss"] = (shown(last.get("loss")), start)
    steps, losses = series(record.evaluations, "eval_loss")
    if np.isfinite(losses).any():
        best = int(np.nanargmin(losses))
        found["Held-out loss"] = (shown(losses[-1]), f"best {losses[best]:.4f} at step {steps[best]:,}")
    if record.training:
        last = record.training[-1]
        found["Tokens"] = (shown(last.get("tokens")), "trained on")
        found["Updates skipped"] = (shown(last.get("skipped")), "loss or gradient not finite")
    for name, key, form in (("Tokens per second", "tokens_per_second", "{:,.0f}"), ("MFU", "mfu", "{:.1%}")):
        _, values = series(record.training, key)
        if np.isfinite(values).any():
            found[name] = (form.format(np.nanmedian(values)), "median")
    if isinstance(environment, dict) and "parameters" in environment:
        active = shown(environment.get("active_parameters"))
        found["Parameters"] = (shown(environment["parameters"]), f"{active} active")
    return found


def stage_rows(record: RunRecord) -> Rows:
    """Name, last step, tokens and losses of each stage; the first row names the columns. Empty for a run without
    stages."""
    said = lambda value: "" if value is None else shown(value)
    rows: Rows = [
        (stage.name, f"{stage.last:,}", *(said(stage.value(key)) for key in ("tokens", "loss", "eval_loss")))
        for stage in stages_of(record)
    ]
    return [("Stage", "Last step", "Tokens", "Training loss", "Held-out loss"), *rows] if rows else []


def shown(value: Any) -> str:
    """A metric as text: counts in full, other numbers with four decimals."""
    if value is None:
        return "unknown"
    if type(value) is int:
        return f"{value:,}" if abs(value) < 10**18 else "out of range"
    found = number(value)
    return f"{found:.4f}" if abs(found) < 1e6 else f"{found:.3g}"  # also "nan" and "inf"


def constant_rows(record: RunRecord) -> Rows:
    """Metrics that never changed: name, value with unit, meaning."""
    rows: Rows = []
    for plot, value in constants(record):
        text = f"{value:.4g}" if abs(value) < 1e6 else f"{value:,.3g}"
        rows.append((plot.title, f"{text} {plot.unit if plot.unit != SHARE else ''}".strip(), plot.about))
    sampled = [line for line in record.training if line.get("on_policy")]
    if sampled:
        share = f"{len(sampled):,} of {len(record.training):,} logged updates"
        rows.append(("Updates on the student's own samples", share, "Their loss is not in the curves."))
    return rows


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
