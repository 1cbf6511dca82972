"""Other implementations of the model, and the small models on which ours is compared with them.

`torch_model` builds the public `Llama4ForCausalLM` or `Llama4ForConditionalGeneration` (by default float32,
scaled-dot-product attention) from a config and weights that went through our export. So parity tests also cover tensor
names, layouts and config.json.
"""

import dataclasses
import functools

import jax
import numpy as np

from maverick_jax.checkpoint import names
from maverick_jax.config import ModelConfig
from maverick_jax.huggingface.config import write_config
from maverick_jax.huggingface.names import table
from maverick_jax.model.transformer import Maverick
from maverick_jax.network import Balance, RopeScaling, VisionConfig
from maverick_jax.pretrained import abstract_model
from maverick_jax.sharding import single_device_mesh
from tests.parity.llama4_numpy import Llama4

NO_TOKEN_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

MAVERICK = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=24,
    intermediate_size_mlp=40,
    num_local_experts=4,
    interleave_moe_layer_step=2,
    attention_chunk_size=8,
    floor_scale=8,
    compute_dtype="float32",
    remat="none",
    balance=Balance(kind="none"),
)
"""A small Maverick: 8 layers, experts in every other one, a chunk and a temperature step of 8 positions."""


def variant(**changes) -> ModelConfig:
    return ModelConfig(**(MAVERICK.model_dump() | changes))


SCALING = RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_position_embeddings=32)
SCOUT = variant(interleave_moe_layer_step=1, use_qk_norm=True, rope_scaling=SCALING.model_dump())
"""A small Scout: experts in every layer, norm on queries and keys, scaled frequencies."""

VISION = VisionConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    image_size=24,
    patch_size=4,
    vision_output_dim=24,
    image_token_index=95,
    boi_token_index=93,
    eoi_token_index=94,
)
"""Tiles of 6 x 6 patches, 9 tokens each."""

MODELS = {
    "maverick": MAVERICK,
    "scout": SCOUT,
    "dense": variant(num_local_experts=0),
    "six_layers_top_2": variant(num_hidden_layers=6, num_experts_per_tok=2),
    "three_layers": variant(num_hidden_layers=3),
    "interpolated_rope": variant(
        num_hidden_layers=4,
        rope_scaling={
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "no_temperature": variant(num_hidden_layers=4, attn_temperature_tuning=False),
    "unchunked": variant(num_hidden_layers=4, attention_chunk_size=None),
    "rope_everywhere": variant(num_hidden_layers=4, no_rope_layer_interval=0),
}
MULTIMODAL = {
    "maverick_with_images": variant(vision=VISION.model_dump()),
    "scout_with_images": ModelConfig(**(SCOUT.model_dump() | {"vision": VISION.model_dump()})),
}


def random_parameter(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Weights so large that every part of the network matters: logits of about 5, norm gains far from one."""
    if name.startswith("vision/"):
        return _random_vision_parameter(name, shape, rng)
    if name.endswith("norm"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name == "embed":
        return rng.normal(size=shape).astype(np.float32)
    fan_in = shape[-2] if name.endswith(("experts_out", "gate", "up", "down")) else MAVERICK.hidden_size
    return (rng.normal(size=shape) * (1.6 / np.sqrt(fan_in))).astype(np.float32)


def _random_vision_parameter(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name.endswith("scale"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith(("bias", "class_embedding", "positions")):
        return (0.5 * rng.normal(size=shape)).astype(np.float32)
    fan_in = {"o": shape[-3:-1], "q": shape[-3:-2], "k": shape[-3:-2], "v": shape[-3:-2]}.get(name.split("/")[-1])
    return (rng.normal(size=shape) * (1.4 / np.sqrt(np.prod(fan_in or shape[-2:-1])))).astype(np.float32)


def random_parameters(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: random_parameter(name, shape, rng) for name, shape in sorted(shapes.items())}


def our_model(config: ModelConfig, parameters: dict[str, np.ndarray], mesh=None) -> Maverick:
    """A `Maverick` with these parameters, rounded to its param_dtype."""
    abstract = abstract_model(config, mesh or single_device_mesh())
    place = lambda leaf, value: jax.device_put(value.astype(leaf.dtype), leaf.sharding)
    leaves = names.flatten(abstract)
    return names.unflatten(abstract, {name: place(leaf, parameters[name]) for name, leaf in leaves.items()})


@dataclasses.dataclass(frozen=True)
class Case:
    """One model with the same random parameters in all implementations."""

    config: ModelConfig
    parameters: dict[str, np.ndarray]

    @functools.cached_property
    def ours(self) -> Maverick:
        return our_model(self.config, self.parameters)

    @functools.cached_property
    def torch(self):
        return torch_model(self.config, self.parameters)

    def twin(self, *mutations: str) -> Llama4:
        return Llama4(public_config(self.config).to_dict(), exported(self.parameters), mutations)


@functools.cache
def case(name: str) -> Case:
    """The case of the model `name` of `MODELS` or `MULTIMODAL`, cached for the test session."""
    config = (MODELS | MULTIMODAL)[name]
    return Case(config, random_parameters(shapes(config)))


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    abstract = abstract_model(config, single_device_mesh())
    return {name: leaf.shape for name, leaf in names.flatten(abstract).items()}


def exported(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same numbers with Hugging Face names and layouts."""
    entries = table({name: p.shape for name, p in parameters.items()})
    return {entry.theirs: entry.export(parameters[entry.ours], np.dtype(np.float32)) for entry in entries}


def config_json(config: ModelConfig) -> dict:
    return write_config(config, "float32", NO_TOKEN_IDS, max_position_embeddings=4096)


def public_config(config: ModelConfig):
    """The transformers config of our config.json. It derives from the two intervals which layers have experts and
    rotary embedding, because our own pattern is under test."""
    from transformers import Llama4Config, Llama4TextConfig

    given = config_json(config)
    text = given["text_config"] if config.vision else given
    del text["no_rope_layers"]
    if config.num_local_experts:
        del text["moe_layers"]
    if config.attention_chunk_size:
        del text["layer_types"]
    return Llama4Config(**given) if config.vision else Llama4TextConfig(**given)


def torch_model(config: ModelConfig, parameters: dict[str, np.ndarray], dtype: str = "float32"):
    """The public model with these parameters, in evaluation mode. (`.to(dtype)` would round its buffers.)"""
    import torch
    from transformers import Llama4ForCausalLM, Llama4ForConditionalGeneration

    torch.set_num_threads(1)  # more threads are slower on models of this size
    kind = Llama4ForConditionalGeneration if config.vision else Llama4ForCausalLM
    model = kind._from_config(public_config(config), dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
    text = model.language_model if config.vision else model
    assert text.model.rotary_emb.inv_freq.dtype == torch.float32
    assert not config.vision or model.vision_model.rotary_embedding.freqs_ci.dtype == torch.complex64
    state = {name: torch.from_numpy(value.copy()) for name, value in exported(parameters).items()}
    model.load_state_dict(state, strict=True)
    return model


def torch_logits(model, tokens: np.ndarray, pixel_values: np.ndarray | None = None) -> np.ndarray:
    """int[B, T], where each row is one segment, and float32[N, C, S, S] -> float32[B, T, V]."""
    import torch

    images = {} if pixel_values is None else {"pixel_values": torch.from_numpy(pixel_values)}
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(tokens, np.int64)), **images).logits.float().numpy()


def random_tokens(config: ModelConfig, batch: int, length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, (batch, length), dtype=np.int32)
