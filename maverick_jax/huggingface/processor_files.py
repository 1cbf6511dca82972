"""The files that tell transformers and vLLM how images are prepared, beside an exported model."""

import json
import pathlib
from typing import Any

from maverick_jax.images.config import ImageConfig

PROCESSOR_FILE, PREPROCESSOR_FILE = "processor_config.json", "preprocessor_config.json"
BILINEAR = 2
"""Pillow's number, which the files spell the filter by."""


def write_processor(config: ImageConfig, folder: pathlib.Path) -> None:
    """Write `processor_config.json` and `preprocessor_config.json` as transformers 4 writes them, with the image half
    in a file of its own: transformers 4.55, 4.57 and 5 all read that. Inside the other file, where transformers 5 puts
    it, 4.55 fails on it. They describe the `bfloat16` chain, whichever `config` names: there is no other there."""
    processor = {
        "processor_class": "Llama4Processor",
        "patch_size": config.patch_size,
        "pixel_shuffle_ratio": config.pixel_shuffle_ratio,
        "fake_image_token": "<|image|>",
        "image_token": "<|image|>",
    }
    for name, content in ((PROCESSOR_FILE, processor), (PREPROCESSOR_FILE, _image_processor(config))):
        (pathlib.Path(folder) / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _image_processor(config: ImageConfig) -> dict[str, Any]:
    return {
        "processor_class": "Llama4Processor",
        "image_processor_type": "Llama4ImageProcessorFast",  # transformers 5 knows this name too; 4 has no other
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": config.tile_size, "width": config.tile_size},
        "resample": BILINEAR,
        "max_patches": config.max_tiles,
        "resize_to_max_canvas": config.resize_to_max_canvas,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
