"""Write the files with which transformers and vLLM preprocess images for an exported model."""

import json
import pathlib
from typing import Any

from maverick_jax.images.config import ImageConfig

PROCESSOR_FILE, PREPROCESSOR_FILE = "processor_config.json", "preprocessor_config.json"
BILINEAR = 2
"""Pillow's number of the bilinear filter, as written in the files."""


def write_processor(config: ImageConfig, folder: pathlib.Path) -> None:
    """Write `processor_config.json` and `preprocessor_config.json` as transformers 4 does, with the image settings in a
    separate file, which transformers 4.55, 4.57 and 5 read. (Transformers 5 writes a single file, on which 4.55 fails.)
    The files always describe the `bfloat16` normalization, since transformers has no other."""
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
        "image_processor_type": "Llama4ImageProcessorFast",  # known to transformers 5 too, and the only one in 4
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
