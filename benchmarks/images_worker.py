"""Preprocessing of a few pictures, ours or transformers', as a worker."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.worker import serve

PICTURES = {"photo": (4000, 3000), "screen": (1920, 1080), "small": (400, 300)}
"""(width, height)."""


def picture(name: str) -> Image.Image:
    """A gradient with noise, as a decoded picture in memory."""
    width, height = PICTURES[name]
    slope = np.linspace(0, 200, width)[None, :, None] + np.zeros((height, 1, 3))
    noise = np.random.default_rng(0).integers(0, 56, slope.shape)
    return Image.fromarray((slope + noise).astype(np.uint8))


def ours() -> tuple[dict[str, str], Callable[[Image.Image], Any]]:
    from maverick_jax.images import ImageConfig, preprocess

    return {"numpy": np.__version__}, lambda image: preprocess(image, ImageConfig())


def transformers() -> tuple[dict[str, str], Callable[[Image.Image], Any]]:
    from benchmarks.torchvision_import import import_torchvision

    torchvision = import_torchvision()
    import torch
    from transformers import Llama4ImageProcessor, __version__

    processor = Llama4ImageProcessor()
    versions = {"transformers": __version__, "torch": torch.__version__, "torchvision": torchvision}
    return versions, lambda image: processor(image, return_tensors="pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("program", choices=["ours", "transformers"])
    versions, process = {"ours": ours, "transformers": transformers}[parser.parse_args().program]()

    def timed(name: str) -> dict[str, float]:
        image = picture(name)
        cpu, began = time.process_time(), time.perf_counter()
        process(image)
        return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}

    serve(lambda: ({"versions": versions}, {name: lambda name=name: timed(name) for name in PICTURES}))


if __name__ == "__main__":
    main()
