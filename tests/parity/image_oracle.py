"""Run the public image processor on the test pictures and print the results as JSON.

    python -m tests.parity.image_oracle > tests/golden/llama4_image_processor.json
    python -m tests.parity.image_oracle FOLDER < prompts.json     # with the processor that FOLDER describes

It runs in its own process: the processor needs torchvision, and importing it (see `benchmarks/torchvision_import.py`)
changes the process. Exits with code 78 if torchvision is missing.
"""

import base64
import hashlib
import json
import pathlib
import sys
from io import BytesIO
from typing import Any

import numpy as np

from maverick_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "llama4_image_processor.json"
NUM_SIZES = 5000


def digest(values: np.ndarray) -> str:
    """Digest of pixel values (as float32) and their shape."""
    return hashlib.sha256(repr(values.shape).encode() + np.ascontiguousarray(values, np.float32).tobytes()).hexdigest()


def random_sizes() -> list[tuple[int, int]]:
    """NUM_SIZES of (height, width): small, large, near the borders of tiles, and lopsided."""
    rng = np.random.default_rng(5)
    spread = np.exp(rng.uniform(0, np.log(8000), (NUM_SIZES, 2))).astype(int)
    borders = rng.integers(1, 17, (NUM_SIZES, 2)) * 336 + rng.integers(-2, 3, (NUM_SIZES, 2))
    return [(int(h), int(w)) for h, w in np.where(rng.random((NUM_SIZES, 1)) < 0.7, spread, borders)]


def golden() -> dict[str, Any]:
    import torch
    import torchvision
    import transformers
    from transformers import Llama4ImageProcessor

    from tests.helpers.image_cases import CASES

    found = {}
    for case, (make, config) in CASES.items():
        settings = {"max_patches": config.max_tiles, "resize_to_max_canvas": config.resize_to_max_canvas}
        processor = Llama4ImageProcessor(size={"height": config.tile_size, "width": config.tile_size}, **settings)
        out = processor(make(), return_tensors="pt")
        found[case] = {"grid": out["aspect_ratios"][0].tolist(), "sha256": digest(out["pixel_values"].float().numpy())}
    versions = {m.__name__: m.__version__.partition("+")[0] for m in (torch, torchvision, transformers)}
    return {"versions": versions, "pictures": found, "sizes": {str(m): _sizes(m) for m in (False, True)}}


def _sizes(resize_to_max_canvas: bool) -> str:
    """Digest of the public grid and fitted size for every random size."""
    import torch
    from transformers.image_utils import SizeDict
    from transformers.models.llama4 import image_processing_llama4 as public

    resolutions = torch.tensor(public.find_supported_resolutions(16, SizeDict(height=336, width=336)))
    found = []
    for size in random_sizes():
        canvas = public.get_best_fit(size, resolutions, resize_to_max_canvas=resize_to_max_canvas)
        limit = canvas
        if not resize_to_max_canvas:
            limit = (min(max(size[0], 336), canvas[0]), min(max(size[1], 336), canvas[1]))
        fitted = public.get_max_res_without_distortion(size, limit)
        found.append([*(int(side) // 336 for side in canvas), *(max(int(side), 1) for side in fitted)])
    return hashlib.sha256(np.array(found, np.int64).tobytes()).hexdigest()


def processed(folder: str, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ids and pixel digest of each prompt; its `text` has an `<|image|>` for each of its `images` (base64 PNGs)."""
    from PIL import Image
    from transformers import AutoImageProcessor, AutoProcessor

    both, images_only = AutoProcessor.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    found = []
    for prompt in prompts:
        images = [Image.open(BytesIO(base64.b64decode(data))) for data in prompt["images"]]
        out = both(text=prompt["text"], images=images, add_special_tokens=False, return_tensors="pt")
        alone = images_only(images, return_tensors="pt")["pixel_values"]
        assert (alone == out["pixel_values"]).all()
        found.append({"ids": out["input_ids"][0].tolist(), "sha256": digest(out["pixel_values"].float().numpy())})
    return found


def main() -> None:
    import torch

    from benchmarks.torchvision_import import import_torchvision

    torch.set_num_threads(1)
    try:
        import_torchvision()
    except InputError as error:
        sys.exit(error.exit_code)
    print(json.dumps(processed(sys.argv[1], json.load(sys.stdin)) if sys.argv[1:] else golden(), indent=1))


if __name__ == "__main__":
    main()
