"""Read and write `config.json` of a Hugging Face Llama 4.

Reading refuses every setting that we would compute differently. An absent key has the default of `Llama4TextConfig` in
transformers 5.23. Writing spells out every key, so that transformers 4.5x, 5.x and vLLM read the same model.
"""

from collections.abc import Mapping
from typing import Any

import pydantic

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.files import listed
from maverick_jax.huggingface import compressed_tensors
from maverick_jax.huggingface.vision_config import read_vision_config, write_vision_config

TEXT_ONLY, MULTIMODAL = "llama4_text", "llama4"
ROPE, GLOBAL = "chunked_attention", "full_attention"

# Defaults for absent keys, from Llama4TextConfig; they differ from the defaults of ModelConfig.
_COPIED = {
    "vocab_size": 202048,
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_local_experts": 16,
    "num_experts_per_tok": 1,
    "use_qk_norm": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
}
_MUST_BE = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 1.0,
}
"""Keys with only one supported value."""


_MOST = {"num_hidden_layers": 1024}
_MOST_OF_ANY = 2**24
"""Limits on numbers in the file, so that checking them costs little whatever the file claims."""


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """Whether the text model's tensors have the prefix of `Llama4ForConditionalGeneration`."""
    return config.get("model_type") == MULTIMODAL


def quantization(config: Mapping[str, Any]) -> Any:
    """`quantization_config` of the file, not yet checked; None if the weights are not quantized."""
    text = config.get("text_config")
    inner = text.get("quantization_config") if isinstance(text, Mapping) else None
    return config.get("quantization_config", inner)


# ---- reading -------------------------------------------------------------------------------------------------------


def read_config(config: Mapping[str, Any], where: str) -> ModelConfig:
    """The model described by `config` (a complete config.json, text-only or multimodal).

    `where` names the file in errors. Raises InputError that lists every malformed or unsupported key.
    """
    if config.get("model_type") not in (TEXT_ONLY, MULTIMODAL):
        raise InputError(f"{where}: model_type {config.get('model_type')!r}; expected {TEXT_ONLY} or {MULTIMODAL}")
    text = config.get("text_config") if is_multimodal(config) else config
    if not isinstance(text, Mapping):
        raise InputError(f"{where}: text_config: expected a mapping, found {type(text).__name__}")
    problems = [
        f"{key}: {part[key]!r} is not supported; expected {expected!r}"
        for part in ([config, text] if text is not config else [text])
        for key, expected in _MUST_BE.items()
        if part.get(key) is not None and part[key] != expected
    ]
    problems += compressed_tensors.problems(quantization(config))
    values, wrong = _copied(text)
    if wrong:  # the other checks need these values
        raise InputError(f"{where}: {listed(problems + wrong)}")
    for keys, reader in _READERS.items():
        try:
            values |= reader(text, values)
        except ValueError as error:
            problems.append(str(error))
        except (KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
            problems.append(f"{keys}: {type(error).__name__}: {error}")
    if is_multimodal(config):
        values["vision"], wrong = read_vision_config(config)
        problems += wrong
    if problems:
        raise InputError(f"{where}: {listed(problems)}")
    try:
        return ModelConfig(**values)
    except pydantic.ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()]
        raise InputError(f"{where}: {listed(found)}") from None


def _copied(text) -> tuple[dict[str, Any], list[str]]:
    """Values of plain keys, and their problems. Old files write whole numbers as floats."""
    values, problems = {}, []
    for key, default in _COPIED.items():
        value = text.get(key, default)
        if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, int | float):
            problems.append(f"{key}: expected {type(default).__name__}, found {value!r:.80}")
        elif not 0 <= value <= _MOST.get(key, _MOST_OF_ANY):
            problems.append(f"{key}: expected 0 to {_MOST.get(key, _MOST_OF_ANY)}, found {value!r:.80}")
        elif isinstance(default, int) and value != int(value):
            problems.append(f"{key}: expected a whole number, found {value!r}")
        else:
            values[key] = type(default)(value)
    for key in ("no_rope_layers", "moe_layers", "layer_types"):
        if text.get(key) is not None and not isinstance(text[key], list):
            problems.append(f"{key}: expected a list, found {text[key]!r}")
    return values, problems


def _attention(text, values):
    heads = values["num_attention_heads"]
    head_dim = text.get("head_dim", 128)
    return {
        "num_key_value_heads": text.get("num_key_value_heads", 8) or heads,
        "head_dim": values["hidden_size"] // heads if head_dim is None else head_dim,
        "attn_temperature_tuning": bool(text.get("attn_temperature_tuning", True)),  # the integer 4 in old files
    }


def _rope(text, values):
    """Rotary settings from `rope_parameters` (5.x) or `rope_theta` and `rope_scaling` (4.x), which must agree."""
    theta, scaling, new = text.get("rope_theta"), text.get("rope_scaling"), text.get("rope_parameters")
    if not new:
        return _one_rope("rope_scaling", {"rope_theta": theta, **(scaling or {})})
    read = _one_rope("rope_parameters", {"rope_theta": theta, **new})
    legacy = {"rope_theta": read["rope_theta"] if theta is None else theta, **(scaling or {})}
    if "rope_scaling" not in text:
        legacy = {**new, "rope_theta": legacy["rope_theta"]}
    if _one_rope("rope_scaling", legacy) != read:
        raise ValueError(f"rope_parameters {new} disagrees with rope_theta {theta!r} and rope_scaling {scaling!r}")
    return read


def _one_rope(key, given):
    if ROPE in given or GLOBAL in given:
        raise ValueError(f"{key}: parameters per type of layer are not supported; expected one mapping")
    kind = given.get("rope_type", given.get("type", "default"))
    theta = float(given["rope_theta"] if given.get("rope_theta") is not None else 500000.0)
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"{key}: partial_rotary_factor {given['partial_rotary_factor']!r} is not supported")
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if kind != "llama3":
        raise ValueError(f"{key}: rope_type {kind!r} is not supported; expected default or llama3")
    names = ("factor", "low_freq_factor", "high_freq_factor")
    scaling = {name: float(given[name]) for name in names}
    scaling["original_max_position_embeddings"] = _whole(
        given["original_max_position_embeddings"], "original_max_position_embeddings"
    )
    return {"rope_theta": theta, "rope_scaling": scaling}


def _layer_pattern(text, values):
    """Which layers have rotary embedding, and the chunk size of their attention."""
    depth, interval = values["num_hidden_layers"], text.get("no_rope_layer_interval", 4)
    listed_rope = text.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(depth)]
    rope = [bool(r) for r in listed_rope[:depth]]
    if len(rope) != depth:
        raise ValueError(f"no_rope_layers: {len(rope)} entries for {depth} layers")
    interval = _step_of([not r for r in rope])
    if interval is None:
        raise ValueError(f"no_rope_layers: {listed_rope}: expected no rotary embedding in every n-th layer")

    chunk = text.get("attention_chunk_size", 8192)
    kinds = text.get("layer_types") or [ROPE if r else GLOBAL for r in rope]
    if any(rope) and kinds == [GLOBAL] * depth:
        chunk = None  # layers with rotary embedding and global attention: our attention_chunk_size is null
    elif kinds != [ROPE if r else GLOBAL for r in rope]:
        raise ValueError(f"layer_types: {kinds} does not match no_rope_layers {listed_rope}")
    return {"no_rope_layer_interval": interval, "attention_chunk_size": chunk}


def _experts_pattern(text, values):
    """Which layers have experts."""
    depth, step = values["num_hidden_layers"], text.get("interleave_moe_layer_step", 1)
    layers = text.get("moe_layers")
    if layers is None:
        layers = list(range(step - 1, depth, step)) if step else []
    found = _step_of([i in layers for i in range(depth)])
    if found is None or any(not 0 <= i < depth for i in layers):
        raise ValueError(f"moe_layers: {layers}: expected every n-th of {depth} layers")
    if found == 0 or values["num_local_experts"] == 0:
        return {"num_local_experts": 0, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1}
    return {"interleave_moe_layer_step": found}


_READERS = {
    "num_key_value_heads, head_dim": _attention,
    "rope_parameters, rope_theta, rope_scaling": _rope,
    "no_rope_layers, no_rope_layer_interval, layer_types": _layer_pattern,
    "moe_layers, interleave_moe_layer_step": _experts_pattern,
}


def _step_of(marks: list[bool]) -> int | None:
    """The n for which exactly every n-th entry is marked; 0 if no entry is marked, None if there is no such n."""
    if not any(marks):
        return 0
    step = marks.index(True) + 1
    return step if marks == [(i + 1) % step == 0 for i in range(len(marks))] else None


def _whole(value, key) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError(f"{key}: expected an integer, found {value!r}")
    return int(value)


# ---- writing -------------------------------------------------------------------------------------------------------


def write_config(
    config: ModelConfig, dtype: str, token_ids: Mapping[str, Any], max_position_embeddings: int
) -> dict[str, Any]:
    """config.json of `Llama4ForCausalLM` (model_type llama4_text), or of `Llama4ForConditionalGeneration` (llama4) for
    a model with an image encoder, as a dict.

    `token_ids`: `bos_token_id`, `eos_token_id` (int or list) and `pad_token_id`; None for a missing token.
    Raises InputError for a model that a Llama 4 config cannot describe.
    """
    if config.local_attention != "chunked" and any(spec.rope for spec in config.layers):
        raise InputError(
            f"local_attention: {config.local_attention} cannot be written to a Llama 4 config, whose layers with "
            "rotary embedding attend in chunks; only a model trained with `chunked` can be exported"
        )
    text = _text_config(config, dtype, token_ids, max_position_embeddings)
    if config.vision is None:
        return {"architectures": ["Llama4ForCausalLM"], **text}
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": MULTIMODAL,
        **write_vision_config(config.vision, dtype),
        "text_config": text,
        "tie_word_embeddings": False,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _text_config(config: ModelConfig, dtype: str, token_ids, max_position_embeddings: int) -> dict[str, Any]:
    rope, moe = [spec.rope for spec in config.layers], [spec.moe for spec in config.layers]
    chunk = config.attention_chunk_size
    scaling = config.rope_scaling and {"rope_type": "llama3", **config.rope_scaling.model_dump()}
    same = set(_COPIED) | {"num_key_value_heads", "head_dim", "attn_temperature_tuning", "rope_theta"}
    return {
        "model_type": TEXT_ONLY,
        **{key: getattr(config, key) for key in sorted(same)},
        **token_ids,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "max_position_embeddings": max_position_embeddings,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})},
        "no_rope_layers": [int(r) for r in rope],
        # transformers divides by it even if no_rope_layers is given, so 0 (no such layer) becomes depth + 1
        "no_rope_layer_interval": config.no_rope_layer_interval or config.num_hidden_layers + 1,
        "moe_layers": [i for i, m in enumerate(moe) if m],
        "interleave_moe_layer_step": config.interleave_moe_layer_step if any(moe) else 0,  # vLLM reads only this one
        # transformers has no unchunked layer with rotary embedding: write full attention, and for vLLM a chunk that is
        # as long as the context
        "attention_chunk_size": chunk or max_position_embeddings,
        "layer_types": [ROPE if r and chunk else GLOBAL for r in rope],
        "dtype": dtype,
        "torch_dtype": dtype,
    }
