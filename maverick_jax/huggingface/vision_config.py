"""Read and write the image encoder's part of a multimodal Llama 4's `config.json`.

An absent key has the default of `Llama4VisionConfig` in transformers 5.23, which differs from all released models.
Writing spells out every key.
"""

from collections.abc import Mapping
from typing import Any

import pydantic

from maverick_jax.network import VisionConfig

_COPIED = {
    "hidden_size": 768,
    "num_hidden_layers": 34,
    "num_attention_heads": 16,
    "num_channels": 3,
    "intermediate_size": 5632,
    "vision_output_dim": 7680,
    "image_size": 448,
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
}
_SAME_AS_OUTPUT = {"projector_input_dim": 4096, "projector_output_dim": 4096}
"""Widths that must equal `vision_output_dim` in Llama 4's adapter."""
_MUST_BE = {
    "hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "multi_modal_projector_bias": False,
    "projector_dropout": 0,
    "attention_dropout": 0,
    "norm_eps": 1e-5,
}
"""Keys with only one supported value; the public encoder does not read them."""
_MOST, _MOST_OF_ANY = {"num_hidden_layers": 1024}, 2**24
"""Limits on numbers in the file, so that checking them costs little whatever the file claims."""
_TOKENS = {"image_token_index": 200092, "boi_token_index": 200080, "eoi_token_index": 200081}


def read_vision_config(config: Mapping[str, Any]) -> tuple[VisionConfig | None, list[str]]:
    """The encoder described by `config` (a complete multimodal config.json), or None and its problems."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return None, [f"vision_config: expected a mapping, found {type(vision).__name__}"]
    problems = [
        f"vision_config.{key}: {vision[key]!r} is not supported; expected {expected!r}"
        for key, expected in _MUST_BE.items()
        if vision.get(key) is not None and vision[key] != expected
    ]
    values: dict[str, Any] = {}
    for prefix, part, keys in (("vision_config.", vision, _COPIED), ("", config, _TOKENS)):
        for key, default in keys.items():
            value = part.get(key, default)
            if isinstance(value, bool) or not isinstance(value, int | float):
                problems.append(f"{prefix}{key}: expected {type(default).__name__}, found {value!r:.80}")
            elif not 0 <= value <= _MOST.get(key, _MOST_OF_ANY):
                problems.append(f"{prefix}{key}: expected 0 to {_MOST.get(key, _MOST_OF_ANY)}, found {value!r:.80}")
            elif isinstance(default, int) and value != int(value):
                problems.append(f"{prefix}{key}: expected a whole number, found {value!r}")
            else:
                values[key] = type(default)(value)
    for key, default in _SAME_AS_OUTPUT.items():
        if vision.get(key, default) != values.get("vision_output_dim"):
            problems.append(f"vision_config.{key}: {vision.get(key, default)!r} differs from vision_output_dim")
    try:
        values["rope_theta"] = _theta(vision)
        return (None, problems) if problems else (VisionConfig(**values), [])
    except pydantic.ValidationError as error:
        problems += [f"vision_config.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    except (TypeError, ValueError, OverflowError) as error:
        problems.append(f"vision_config: {error}")
    return None, problems


def _theta(vision: Mapping[str, Any]) -> float:
    """Base of the rotary frequencies, from `rope_parameters` (5.x) or `rope_theta` (4.x), which must agree."""
    new = vision.get("rope_parameters") or {}
    if not isinstance(new, Mapping):
        raise TypeError(f"rope_parameters: expected a mapping, found {type(new).__name__}")
    if new.get("rope_type", "default") != "default" or new.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"rope_parameters: {new!r} is not supported; expected rope_type default")
    old, theta = vision.get("rope_theta"), new.get("rope_theta", vision.get("rope_theta"))
    if old is not None and old != theta:
        raise ValueError(f"rope_theta: {old!r} disagrees with rope_parameters {new!r}")
    return float(10000.0 if theta is None else theta)


def write_vision_config(vision: VisionConfig, dtype: str) -> dict[str, Any]:
    """The keys that a multimodal config.json has in addition to `text_config`: special tokens and `vision_config`."""
    return {
        **{key: getattr(vision, key) for key in _TOKENS},
        "vision_config": {
            "model_type": "llama4_vision_model",
            **{key: getattr(vision, key) for key in _COPIED},
            **dict.fromkeys(_SAME_AS_OUTPUT, vision.vision_output_dim),
            **_MUST_BE,
            "projector_dropout": 0.0,
            "attention_dropout": 0.0,
            "vision_feature_layer": -1,
            "rope_theta": vision.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": vision.rope_theta},
            "dtype": dtype,
            "torch_dtype": dtype,
        },
    }
