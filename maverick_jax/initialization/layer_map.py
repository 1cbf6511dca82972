"""Maps layers of a source model to the layers of a new model that they initialize, and checks that the config keys of
both models agree. Only configs are read here."""

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
"""Keys that are compared layer by layer: they may differ as long as each layer fits its source layer."""
_DENSE = ("intermediate_size_mlp",)
_MOE = ("num_local_experts", "num_experts_per_tok", "intermediate_size")
_MAX_MISFITS = 4
"""Maximum number of misfitting layers that a message lists."""

_ADDED = ("reasoning_heads", "loops")
"""Keys of what a model may have beyond its source, because it changes nothing at first."""

Finding = tuple[str, str]
"""A config key, and what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Start:
    """The source of a model's initial weights."""

    path: str
    """The source: a run directory, one of its checkpoints, or a Hugging Face folder."""
    layers: tuple[int, ...] | None = None
    """For each layer, in order, the source's layer that initializes it, from 0; layers may repeat. None: all, in
    order."""
    upcycle: bool = False
    """Whether a dense layer may initialize a mixture of experts."""
    tokenizer: str | None = None
    """The new model's tokenizer, to which the rows of the source's vocabulary move; None: both have the same ids."""

    def sources(self, model: ModelConfig) -> tuple[int, ...]:
        """The source's layer for each layer of `model`."""
        return tuple(range(model.num_hidden_layers)) if self.layers is None else self.layers

    def is_copy(self, model: ModelConfig, source: ModelConfig) -> bool:
        """Whether each layer is initialized from the same layer of an equal stack, so that the parameters of both
        models have the same names and shapes."""
        same = model.period == source.period and model.num_hidden_layers == source.num_hidden_layers
        return self.tokenizer is None and same and self.sources(model) == tuple(range(source.num_hidden_layers))


def findings(model: ModelConfig, source: ModelConfig, start: Start) -> list[Finding]:
    """The reasons why `model` cannot be initialized as `start` says; `source` is the source's config. Empty if it
    can."""
    found = [
        _differs(key, model, source, start)
        for key in ModelConfig.keys_of(Purpose.NETWORK)
        if key not in (*_BY_LAYER, *_of_tokens(start))
        and getattr(model, key) != getattr(source, key)
        and not _added(key, source)
    ]
    found += [
        _differs(key, model, source, start)
        for key in ModelConfig.keys_of(Purpose.EXTENSION)
        if getattr(model, key) is None and getattr(source, key) is not None
    ]
    return found + (list(_depth(model, source, start)) or list(_layers(model, source, start)))


def _added(key: str, source: ModelConfig) -> bool:
    return key in _ADDED and getattr(source, key) is None


def _of_tokens(start: Start) -> tuple[str, ...]:
    """Keys that may differ because the vocabulary does."""
    return () if start.tokenizer is None else ("vocab_size",)


def _differs(key: str, model: ModelConfig, source: ModelConfig, start: Start) -> Finding:
    return f"model.{key}", f"{getattr(model, key)} here, {getattr(source, key)} in {start.path}"


def _depth(model: ModelConfig, source: ModelConfig, start: Start) -> Iterator[Finding]:
    depth, there = model.num_hidden_layers, source.num_hidden_layers
    if start.layers is None and depth != there:
        key, text = _differs("num_hidden_layers", model, source, start)
        yield key, f"{text}; set model.init_layers to choose layers{_such_as(model, source, start)}"
    elif start.layers is not None and len(start.layers) != depth:
        text = f"lists {len(start.layers)} layers; expected {depth} (model.num_hidden_layers)"
        yield "model.init_layers", text + _such_as(model, source, start)
    elif missing := [layer for layer in start.sources(model) if not 0 <= layer < there]:
        yield "model.init_layers", f"{start.path} has no layer {missing[0]}; its layers are 0 to {there - 1}"


def _layers(model: ModelConfig, source: ModelConfig, start: Start) -> Iterator[Finding]:
    """Layers that do not fit, or else widths that differ."""
    pairs = [(t, s, model.layer(t), source.layer(s)) for t, s in enumerate(start.sources(model))]
    unfit = [pair for pair in pairs if not _fits(*pair[2:], upcycle=True)]
    for t, s, here, there in unfit[:_MAX_MISFITS]:
        choices = [str(i) for i in range(source.num_hidden_layers) if _fits(here, source.layer(i), start.upcycle)]
        what = f"layer {t} here is {_kind(here)}, layer {s} of {start.path} is {_kind(there)}"
        fitting = f"layers that fit: {', '.join(choices[:20])}" if choices else "no layer fits"
        yield _key_of(model, source, start, here, there), f"{what}; {fitting}"
    if unfit:
        return
    upcycled = [t for t, _, here, there in pairs if here.moe and not there.moe]
    if upcycled and not start.upcycle:
        listed = ", ".join(map(str, upcycled[:20])) + (", ..." if len(upcycled) > 20 else "")
        text = f"layers {listed} are mixtures of experts here and dense in {start.path}"
        yield "model.init_upcycle", f"{text}; expected true, which initializes experts from dense layers"
    elif start.upcycle and not upcycled:
        yield "model.init_upcycle", f"no dense layer of {start.path} initializes a mixture of experts here; remove it"
    elif upcycled and model.intermediate_size < (least := source.intermediate_size_mlp):
        text = f"{model.intermediate_size} here; dense layers of {start.path} initialize shared experts"
        yield "model.intermediate_size", f"{text}; expected at least {least}"
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
    """The config key that makes the layers differ."""
    if start.layers is not None:
        return "model.init_layers"
    if here.rope != there.rope:
        return "model.no_rope_layer_interval"
    differ = model.interleave_moe_layer_step != source.interleave_moe_layer_step
    return "model.interleave_moe_layer_step" if differ else "model.num_local_experts"


def _such_as(model: ModelConfig, source: ModelConfig, start: Start) -> str:
    """`, such as [...]`: layers that fit, spread evenly over the source; empty if no layer fits."""
    stretch = (source.num_hidden_layers - 1) / max(1, model.num_hidden_layers - 1)
    chosen, layers = [], source.layers
    for t, here in enumerate(model.layers):
        fitting = [s for s, there in enumerate(layers) if _fits(here, there, start.upcycle)]
        if not fitting:
            return ""
        chosen.append(min(fitting, key=lambda s: abs(s - t * stretch)))
    return f", such as {chosen}"
