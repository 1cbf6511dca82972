"""How a run was made, in words: when, where and by which command; on which machine; with which settings."""

import json
from typing import Any

Rows = list[tuple[str, str]]
MAX_STARTS, MAX_CHANGES = 20, 100
"""Most starts, and most changes at restarts, that are listed."""


def starts(environment: Any) -> Rows:
    """When, where and how the run was started: (name, text). Later starts are listed in one row."""
    found = environment.get("starts") if isinstance(environment, dict) else None
    found = [start for start in found if isinstance(start, dict)] if isinstance(found, list) else []
    if not found:
        return []
    first, more = found[0], found[1:]
    code = f"maverick-jax {_text(first.get('version'))}"
    if commit := first.get("commit"):
        name, _, changes = _text(commit).partition("+")
        code += f", commit {name[:12]}" + (" with uncommitted changes" if changes else "")
    rows = [
        ("Started", f"{_time(first.get('time'))} on {_text(first.get('host'))}"),
        ("Command", _text(first.get("command"))),
        ("Code", code),
    ]
    if more:
        said = [f"{_time(start.get('time'))} from step {_text(start.get('step'))}" for start in more[-MAX_STARTS:]]
        rows.append(("Resumed", f"{len(more)} time{'s' * (len(more) > 1)}: " + "; ".join(said)))
    return rows


def changed_at_restarts(environment: Any) -> list[tuple[str, ...]]:
    """What each later start changed in the config: (time, step, key, before, after); the first row names the columns.
    Empty if nothing was changed."""
    found = environment.get("starts") if isinstance(environment, dict) else None
    rows: list[tuple[str, ...]] = []
    for start in found[1:] if isinstance(found, list) else []:
        changed = start.get("changed") if isinstance(start, dict) else None
        for key, values in changed.items() if isinstance(changed, dict) else ():
            old, new = values if isinstance(values, list) and len(values) == 2 else (None, values)
            rows.append((_time(start.get("time")), _text(start.get("step")), key, _text(old), _text(new)))
    return [("Restart", "Step", "Changed in the config", "Before", "After"), *rows[-MAX_CHANGES:]] if rows else []


def machine(environment: Any) -> Rows:
    """The environment in words: (name, text). Keys that are not known are shown as they are."""
    if not isinstance(environment, dict):
        return []
    left = {key: value for key, value in environment.items() if key not in ("starts", "references")}
    rows: Rows = []
    take = lambda key: left.pop(key, None)
    devices, count, processes = take("devices"), take("device_count"), take("process_count")
    if devices is not None:
        kinds = ", ".join(map(_text, devices)) if isinstance(devices, list) else _text(devices)
        several = f", in {processes} processes" if isinstance(processes, int) and processes > 1 else ", in one process"
        rows.append(("Devices", f"{_text(count)} x {kinds}{several}"))
    if (mesh := take("mesh")) is not None:
        split = {k: n for k, n in mesh.items() if n != 1} if isinstance(mesh, dict) else {"": mesh}
        rows.append(("Mesh", ", ".join(f"{axis} {_text(n)}" for axis, n in split.items()) or "not split"))
    if (python := take("python")) is not None:
        rows.append(("Python", _text(python)))
    if isinstance(packages := take("packages"), dict):
        rows.append(("Packages", ", ".join(f"{name} {_text(number)}" for name, number in packages.items())))
    elif packages is not None:
        rows.append(("Packages", _text(packages)))
    parameters, active = take("parameters"), take("active_parameters")
    if parameters is not None:
        rows.append(("Parameters", f"{_text(parameters)} in total, {_text(active)} active per token"))
    if (flops := take("train_flops_per_token")) is not None:
        million = type(flops) in (int, float) and 0 <= flops < 1e18
        rows.append(("FLOPs per token", f"{flops / 1e6:,.4g} million in a step" if million else _text(flops)))
    if (data := take("data")) is not None:
        rows.append(("Data", f"fingerprint {_text(data)}"))
    return rows + _flat(left)


def settings(config: dict[str, Any]) -> Rows:
    """The settings that matter most, from the config's dotted keys: (name, text)."""
    get = lambda key: _text(config[key]) if config.get(key) is not None else ""
    rows = []
    if config.get("objective.kind") is not None:
        weighting = config.get("objective.weighting")
        how = f", weighting {_text(weighting.get('kind'))}" if isinstance(weighting, dict) else ""
        source = get("objective.teacher")
        rows.append(("Objective", get("objective.kind") + (f" from {source}" if source else "") + how))
    sources = config.get("data.sources")
    if isinstance(sources, dict):
        rows.append(("Data", f"{', '.join(map(_text, sources))}; tokenizer {get('data.tokenizer') or '-'}"))
    if config.get("data.batch_size") is not None:
        batch = f"{get('data.batch_size')} sequences of {get('data.sequence_length')} tokens"
        rows.append(("Step", f"{batch}; {get('run.steps')} steps; seed {get('run.seed')}"))
    if config.get("model.num_hidden_layers") is not None:
        experts = f", {get('model.num_local_experts')} experts" if config.get("model.num_local_experts") else ""
        width = f"{get('model.num_hidden_layers')} layers, {get('model.hidden_size')} wide{experts}"
        rows.append(("Model", f"{width}; vocabulary {get('model.vocab_size')}; {get('model.compute_dtype')} compute"))
    if config.get("optimizer.kind") is not None:
        schedule = f"{get('optimizer.schedule')} schedule, {get('optimizer.warmup_steps')} warm-up steps"
        rows.append(("Optimizer", f"{get('optimizer.kind')}, rate {get('optimizer.learning_rate')}, {schedule}"))
    return rows


def _flat(found: dict[str, Any], prefix: str = "") -> Rows:
    rows: Rows = []
    for key, value in found.items():
        name = prefix + str(key).replace("_", " ")
        rows += _flat(value, f"{name}: ") if isinstance(value, dict) and not prefix else [(name, _text(value))]
    return rows


def _time(value: Any) -> str:
    """An ISO time in UTC, to the minute."""
    text = _text(value)
    return f"{text[:10]} {text[11:16]} UTC" if len(text) >= 16 and text[10:11] == "T" else text


def _text(value: Any) -> str:
    if type(value) in (int, float):
        return f"{value:,}" if abs(value) < 10**18 else "out of range"
    return value if isinstance(value, str) else json.dumps(value)
