"""Borders between the stages of a run: which changes the train state survives, and where each stage lies.

Parameters, counters and the position in each source go on over every border. So do the optimizer's moments, if the same
parameters are trained by the same kind of optimizer (`train.restore` says what begins anew). A change with which the
parameters would not be the same, or a source's tokens would not be, is refused here, when the config is read.
"""

import itertools
from collections.abc import Sequence

from data.rows.course import StageData
from maverick_jax.config import ModelConfig
from maverick_jax.network import Purpose
from maverick_jax.sharding import size_of
from train.config import RunConfig
from train.stages import StagePlace

Finding = tuple[int, str, str]
"""(number of a stage, key, what is wrong)."""

MODEL = (
    *("attention_chunk_size", "local_attention", "rope_theta", "rope_scaling"),
    *("attn_temperature_tuning", "floor_scale", "attn_scale"),
    *ModelConfig.keys_of(Purpose.COMPUTATION, Purpose.TRAINING, Purpose.ROUNDING, Purpose.EXTENSION),
)
"""Keys of `model` that may differ between stages: the parameters are the same ones."""
DATA = ("tokenizer", "seed", "shuffle")
"""Keys of `data` that may not: tokens, and their order, would not be the same."""


def unfit_borders(names: Sequence[str], parts: Sequence[RunConfig]) -> list[Finding]:
    """What cannot be carried over the borders between `parts`, the stages of a run in order."""
    found: list[Finding] = []
    for number, (former, later) in enumerate(itertools.pairwise(parts), start=1):
        before = names[number - 1]
        found += [(number, key, said) for key, said in _unfit(before, former, later)]
    for number, part in enumerate(parts):
        earlier = {name: parts[i] for i in range(number) for name in parts[i].data.sources}
        found += [(number, key, said) for key, said in _unfit_sources(part, earlier)]
    return found


def placed(whole: RunConfig, parts: Sequence[RunConfig]) -> tuple[list[RunConfig], list[StagePlace]]:
    """Each stage with its last step at `run.steps`, and its place in the run."""
    lengths = [
        stage.steps_of(part.data.batch_size * part.data.sequence_length)
        for stage, part in zip(whole.stages, parts, strict=True)
    ]
    course = tuple(StageData(part.data, n * part.data.batch_size) for part, n in zip(parts, lengths, strict=True))
    total, first, places = sum(lengths), 0, []
    for number, (stage, steps) in enumerate(zip(whole.stages, lengths, strict=True)):
        scheduled = (first, steps) if stage.has_own_schedule else (0, total)
        places.append(StagePlace(whole, stage.name, number, first, steps, scheduled, course))
        first += steps
    ends = [place.first + place.steps for place in places]
    with_end = lambda part, end: part.model_copy(update={"run": part.run.model_copy(update={"steps": end})})
    return [with_end(part, end) for part, end in zip(parts, ends, strict=True)], places


def _unfit(before: str, former: RunConfig, later: RunConfig) -> list[tuple[str, str]]:
    found = []
    for key in type(later.model).model_fields:
        old, new = getattr(former.model, key), getattr(later.model, key)
        if key not in MODEL and old != new:
            found.append((f"model.{key}", _refused(new, old, before, "its parameters would not be the same")))
    bias = lambda config: config.model.balance.kind == "loss_free_bias"
    if bias(former) != bias(later):
        kinds = later.model.balance.kind, former.model.balance.kind
        found.append(("model.balance.kind", _refused(*kinds, before, "its bias is a parameter")))
    if (former.model.latent is None) != (later.model.latent is None):
        has = lambda config: "null" if config.model.latent is None else "latents"
        found.append(("model.latent", _refused(has(later), has(former), before, "its feedback is a parameter")))
    for key in DATA:
        old, new = getattr(former.data, key), getattr(later.data, key)
        if old != new:
            found.append((f"data.{key}", _refused(new, old, before, "tokens and their order would not be the same")))
    record = lambda config: config.trainable.lora and config.trainable.lora.record()
    if former.trainable.lora is not None and record(former) != record(later):
        new = "null" if later.trainable.lora is None else "another one"
        said = f"{new}; stage {before} has adapters, which would be lost; expected the same trainable.lora"
        found.append(("trainable.lora", said))
    sizes = [config.mesh.sizes for config in (former, later)]
    devices = [None if -1 in size.values() else size_of(size, tuple(size)) for size in sizes]
    if None not in devices and devices[0] != devices[1]:
        found.append(("mesh", f"{devices[1]} devices, and stage {before} has {devices[0]}; a job keeps its devices"))
    return found


def _unfit_sources(part: RunConfig, earlier: dict[str, RunConfig]) -> list[tuple[str, str]]:
    """What an earlier stage held out is never trained on."""
    found = []
    for name in part.data.sources:
        if name in earlier and (old := earlier[name].data.held_out_of(name)) != (new := part.data.held_out_of(name)):
            own = part.data.sources[name].held_out_fraction is not None
            key = f"data.sources.{name}.held_out_fraction" if own else "data.held_out_fraction"
            found.append((key, f"{new:g}; expected {old:g}, as in the stages before: {name} would hold out other text"))
    return found


def _refused(new: object, old: object, before: str, why: str) -> str:
    return f"{new}; stage {before} has {old}, and {why}; expected {old}, or a run of its own with model.init_from"
