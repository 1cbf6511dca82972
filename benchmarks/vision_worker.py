"""The image encoder's forward pass, ours or transformers', as a worker. A request is the name of a shape."""

import argparse
import functools
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.worker import serve

SHAPES = {
    "one_tile": (1, {"num_hidden_layers": 8}),
    "five_tiles": (5, {"num_hidden_layers": 4}),
    "seventeen_tiles": (17, {"num_hidden_layers": 2}),
    "narrow": (5, {"num_hidden_layers": 8, "hidden_size": 256, "num_attention_heads": 4, "vision_output_dim": 512}),
}
"""Number of tiles, and changes to the released encoder: its widths with fewer of its 34 layers, or a small one."""


def fields(shape: str) -> dict[str, Any]:
    changes = SHAPES[shape][1]
    return changes | {"intermediate_size": 4 * changes.get("hidden_size", 1408)}


def pixels(shape: str) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (SHAPES[shape][0], 3, 336, 336)).astype(np.float32)


def flops(shape: str) -> float:
    """FLOPs of the matrix products of one forward pass."""
    from maverick_jax.network import VisionConfig

    v, tiles = VisionConfig(**fields(shape)), SHAPES[shape][0]
    W, tokens = v.hidden_size, v.grid**2 + 1
    layer = tokens * (8 * W * W + 4 * W * v.intermediate_size) + 4 * tokens**2 * W
    adapter = 2 * v.tokens_per_tile * v.vision_output_dim * (v.intermediate_size + v.vision_output_dim)
    return tiles * (v.num_hidden_layers * layer + 2 * 588 * W * (tokens - 1) + adapter)


@functools.cache
def ours(shape: str) -> Callable[[], np.ndarray]:
    """Our forward pass, from pixels in host memory to the adapter's output in host memory."""
    import jax
    from flax import nnx

    from maverick_jax.config import ModelConfig
    from maverick_jax.model.vision import VisionTower
    from maverick_jax.network import VisionConfig
    from maverick_jax.sharding import ShardingRules, single_device_mesh

    vision = VisionConfig(**fields(shape), image_token_index=1)
    width = vision.vision_output_dim
    config = ModelConfig.from_name("tiny").model_copy(update={"vision": vision, "hidden_size": width})
    images = pixels(shape)
    with jax.set_mesh(single_device_mesh()):
        tower = jax.jit(lambda: VisionTower(config, ShardingRules(), rngs=nnx.Rngs(0)))()
        forward = jax.jit(lambda tower, images: tower.features(images)).lower(tower, images).compile()
    return lambda: np.asarray(forward(tower, images))


@functools.cache
def theirs(shape: str) -> Callable[[], np.ndarray]:
    import torch
    from transformers import Llama4VisionConfig
    from transformers.models.llama4.modeling_llama4 import Llama4VisionModel

    widths = {"hidden_size": 1408, "num_attention_heads": 16, "vision_output_dim": 4096} | fields(shape)
    projector = dict.fromkeys(("projector_input_dim", "projector_output_dim"), widths["vision_output_dim"])
    config = Llama4VisionConfig(image_size=336, patch_size=14, **widths, **projector)
    torch.manual_seed(0)
    model = Llama4VisionModel._from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
    images = torch.from_numpy(pixels(shape))

    @torch.inference_mode()
    def forward() -> np.ndarray:
        return model(images).last_hidden_state.numpy()

    return forward


def timed(forward: Callable[[], np.ndarray]) -> dict[str, float]:
    cpu, began = time.process_time(), time.perf_counter()
    assert np.isfinite(forward()).all()
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _start(who: str, threads: int):
    if who == "ours":
        from importlib.metadata import version

        make, versions = ours, {"jax": version("jax")}
    else:
        import torch
        import transformers

        torch.set_num_threads(threads)
        make, versions = theirs, {"torch": torch.__version__, "transformers": transformers.__version__}
    requests = {shape: lambda shape=shape: timed(make(shape)) for shape in SHAPES}
    if who == "ours":
        from benchmarks.ours import matrix_rate

        requests["matrix_rate"] = lambda: {"flops_per_second": matrix_rate()}
    return {"versions": versions}, requests


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=["ours", "transformers"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    serve(lambda: _start(args.who, args.threads))


if __name__ == "__main__":
    main()
