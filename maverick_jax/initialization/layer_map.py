"""Which layer of another model each layer of a new one begins as, and what of the two must agree. Configs alone."""

import dataclasses
from collections.abc import Iterator

from maverick_jax.config import ModelConfig
from maverick_jax.network import LayerSpec, Purpose

_BY_LAYER = (
    "num_hidden_layers",
    "no_rope_layer_interval",
    "interleave_moe_layer_step",
    "num_local_experts",
    "num_experts_per_tok",
    "intermediate_size",
    "intermediate_size_mlp",
)
"""Keys that matter as far as they make a layer another than the one it begins as."""
_DENSE = ("intermediate_size_mlp",)
_MOE = ("num_local_experts", "num_experts_per_tok", "intermediate_size")
_MOST_SAID = 4

Finding = tuple[str, str]
"""A key of the config, and what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Where the first weights of a model come from."""

    path: str
    """A run directory, one of its checkpoints, or a Hugging Face folder: the source."""
    layers: tuple[int, ...] | None = None
    """The source's layer that each layer begins as, in order, from 0; one may be taken twice. None: all, in order."""
    upcycle: bool = False
    """Whether a mixture of experts may begin as a dense layer."""

    def sources(self, model: ModelConfig) -> tuple[int, ...]:
        """The source's layer for each layer of `model`."""
        return tuple(range(model.num_hidden_layers)) if self.layers is None else self.layers

    def is_copy(self, model: ModelConfig, source: ModelConfig) -> bool:
        """Whether every layer begins as itself, so that the parameters of the two have the same names and shapes."""
        same = model.period == source.period and model.num_hidden_layers == source.num_hidden_layers
        return same and self.sources(model) == tuple(range(source.num_hidden_layers))


def findings(model: ModelConfig, source: ModelConfig, start: Start) -> list[Finding]:
    """Why `model` cannot begin as `start` says, where `source` is the config of the model there; nothing if it can."""
    found = [
        _differs(key, model, source, start)
        for key in ModelConfig.keys_of(Purpose.NETWORK)
        if key not in _BY_LAYER and getattr(model, key) != getattr(source, key)
    ]
    return found + (list(_depth(model, source, start)) or list(_layers(model, source, start)))


def _differs(key: str, model: ModelConfig, source: ModelConfig, start: Start) -> Finding:
    return f"model.{key}", f"{getattr(model, key)} here, {getattr(source, key)} in {start.path}"


def _depth(model: ModelConfig, source: ModelConfig, start: Start) -> Iterator[Finding]:
    depth, there = model.num_hidden_layers, source.num_hidden_layers
    if start.layers is None and depth != there:
        key, text = _differs("num_hidden_layers", model, source, start)
        yield key, f"{text}; model.init_layers says which of them are taken{_such_as(model, source, start)}"
    elif start.layers is not None and len(start.layers) != depth:
        few = f"names {len(start.layers)} layers, model.num_hidden_layers is {depth}"
        yield "model.init_layers", few + _such_as(model, source, start)
    elif missing := [layer for layer in start.sources(model) if not 0 <= layer < there]:
        yield "model.init_layers", f"{start.path} has no layer {missing[0]}; its layers are 0 to {there - 1}"


def _layers(model: ModelConfig, source: ModelConfig, start: Start) -> Iterator[Finding]:
    """What is wrong layer by layer, then what is wrong with the widths of layers that fit."""
    pairs = [(t, s, model.layer(t), source.layer(s)) for t, s in enumerate(start.sources(model))]
    unfit = [pair for pair in pairs if not _fits(*pair[2:], upcycle=True)]
    for t, s, here, there in unfit[:_MOST_SAID]:
        choices = [str(i) for i in range(source.num_hidden_layers) if _fits(here, source.layer(i), start.upcycle)]
        what = f"layer {t} here is {_kind(here)}, layer {s} of {start.path} is {_kind(there)}"
        such = f"one that fits: {', '.join(choices[:20])}" if choices else "there is none that fits"
        yield _key_of(model, source, start, here, there), f"{what}; {such}"
    if unfit:
        return
    upcycled = [t for t, _, here, there in pairs if here.moe and not there.moe]
    if upcycled and not start.upcycle:
        listed = ", ".join(map(str, upcycled[:20])) + (", ..." if len(upcycled) > 20 else "")
        text = f"layers {listed} are mixtures of experts here, dense in {start.path}"
        yield "model.init_upcycle", f"{text}; expected true, which makes the one of the other"
    elif start.upcycle and not upcycled:
        yield "model.init_upcycle", f"no mixture of experts here begins as a dense layer of {start.path}; leave it out"
    elif upcycled and model.intermediate_size < (least := source.intermediate_size_mlp):
        text = f"{model.intermediate_size} here; a shared expert begins as a dense layer of {start.path}"
        yield "model.intermediate_size", f"{text}: expected at least {least}"
    kinds = {here.moe for _, _, here, there in pairs if here.moe == there.moe}
    for key in (*(_MOE if True in kinds else ()), *(_DENSE if False in kinds else ())):
        if getattr(model, key) != getattr(source, key):
            yield _differs(key, model, source, start)


def _fits(here: LayerSpec, there: LayerSpec, upcycle: bool) -> bool:
    return here.rope == there.rope and (here.moe == there.moe or (here.moe and upcycle))


def _kind(spec: LayerSpec) -> str:
    feed_forward = "a mixture of experts" if spec.moe else "dense"
    return f"{feed_forward}, {'with' if spec.rope else 'without'} rotary embedding"


def _key_of(model: ModelConfig, source: ModelConfig, start: Start, here: LayerSpec, there: LayerSpec) -> str:
    """The key that makes the layers differ."""
    if start.layers is not None:
        return "model.init_layers"
    if here.rope != there.rope:
        return "model.no_rope_layer_interval"
    differ = model.interleave_moe_layer_step != source.interleave_moe_layer_step
    return "model.interleave_moe_layer_step" if differ else "model.num_local_experts"


def _such_as(model: ModelConfig, source: ModelConfig, start: Start) -> str:
    """`, such as [...]`: layers that fit, spread evenly over the source; empty if there are none."""
    stretch = (source.num_hidden_layers - 1) / max(1, model.num_hidden_layers - 1)
    chosen, layers = [], source.layers
    for t, here in enumerate(model.layers):
        fitting = [s for s, there in enumerate(layers) if _fits(here, there, start.upcycle)]
        if not fitting:
            return ""
        chosen.append(min(fitting, key=lambda s: abs(s - t * stretch)))
    return f", such as {chosen}"
