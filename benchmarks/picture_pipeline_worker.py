"""Pictures from JPEG files to tiles, by our data pipeline or in a loop with transformers' image processor, as a
worker."""

import argparse
import json
import os
import pathlib
import time
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.worker import serve

SIZES = ((640, 480), (800, 600), (1024, 768), (1280, 960), (1920, 1080), (1600, 1200), (2048, 1536), (2592, 1944),
         (3264, 2448), (4000, 3000))  # fmt: skip
"""(width, height) of photographs; every second one is upright."""
LENGTH = 8192
TWO_GRIDS = (1680, 1008)
"""(width, height) of a picture of 3 x 5 tiles and the overview."""


def photograph(number: int, size: tuple[int, int]) -> Image.Image:
    """A made-up photograph: smooth colors with detail at several scales, and noise."""
    random, (width, height) = np.random.RandomState(number), size
    found = np.zeros((height, width, 3), np.float32)
    for cells in (3, 12, 48, 192):
        small = random.randint(0, 256, (cells, cells, 3)).astype(np.uint8)
        found += np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), np.float32) / 4
    found += random.randint(-6, 7, (height, width, 1))
    return Image.fromarray(np.clip(found, 0, 255).astype(np.uint8))


def write_photographs(folder: pathlib.Path, count: int) -> pathlib.Path:
    """`count` JPEG files, and LLaVA records with one of them each."""
    records = []
    for i in range(count):
        size = SIZES[i % len(SIZES)]
        photograph(i, size[::-1] if i % 2 else size).save(folder / f"{i}.jpg", quality=90)
        records.append(_record(i, [f"{i}.jpg"]))
    return _written(folder, records)


def write_equal(folder: pathlib.Path, rows: int) -> pathlib.Path:
    """Records that fill a row each with two pictures of 16 tiles."""
    for i in range(8):
        photograph(i, TWO_GRIDS).save(folder / f"{i}.jpg", quality=90)
    return _written(folder, [_record(i, [f"{i % 8}.jpg", f"{(i + 1) % 8}.jpg"]) for i in range(rows)])


def _record(number: int, names: list[str]) -> dict[str, Any]:
    asked = "<image>\n" * len(names) + f"What is in picture {number}?"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "Colors."}]
    return {"id": number, "image": names, "conversations": turns}


def _written(folder: pathlib.Path, records: list[dict[str, Any]]) -> pathlib.Path:
    path = folder / "samples.json"
    path.write_text(json.dumps(records))
    return path


def resident() -> int:
    """Bytes of memory of this process."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def dataset(path: pathlib.Path, **changes):
    from data.config import DataConfig
    from data.rows.dataset import open_dataset

    values = {
        "sources": {"shown": {"kind": "pictures", "path": str(path)}},
        "sequence_length": LENGTH,
        "batch_size": 1,
        "held_out_fraction": 0,
        "shuffle": False,
        "cache_dir": str(path.parent / "cache"),
    }
    return open_dataset(DataConfig.model_validate(values | changes), "train", seed=0)


def ours(path: pathlib.Path) -> dict[str, float]:
    """Seconds to read all rows of an epoch."""
    data = dataset(path, prefetch=4)
    cpu, began = time.process_time(), time.perf_counter()
    with data.batches([0], 1, 0, data.num_rows()) as batches:
        tiles = sum(int(batch["tiles"].shape[1]) for batch in batches)
    found = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return found | {"rows": data.num_rows(), "tiles": tiles}


def transformers(path: pathlib.Path) -> dict[str, float]:
    """Seconds to decode and process all pictures, record by record."""
    from transformers import Llama4ImageProcessor

    processor, records = Llama4ImageProcessor(), json.loads(path.read_text())
    cpu, began, tiles = time.process_time(), time.perf_counter(), 0
    for record in records:
        images = [Image.open(path.parent / name).convert("RGB") for name in record["image"]]
        tiles += len(processor(images, return_tensors="pt")["pixel_values"])
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu, "tiles": tiles}


def memory(path: pathlib.Path) -> dict[str, float]:
    """Bytes that 64 prefetched rows of 32 tiles take, beside those of their pixels."""
    rows = 64
    data = dataset(path, prefetch=rows, tiles={"per_row": 32, "prefetch_bytes": 1 << 31})
    with data.batches([0], 1, 0, 2) as batches:
        shape = next(batches)["tiles"].shape
    before = resident()
    with data.batches([0], 1, 0, data.num_rows()) as batches:
        held = next(batches)
        last, still = 0, 0
        while still < 4:  # until nothing more is prepared
            time.sleep(1)
            still = still + 1 if resident() - last < 1 << 20 else 0
            last = resident()
        taken = resident() - before
    assert held["tiles"].shape == shape == (1, 32, 3, 336, 336)
    return {"bytes": taken, "pixels": (rows + 1) * held["tiles"].nbytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("program", choices=["ours", "transformers", "memory"])
    parser.add_argument("path", type=pathlib.Path)
    args = parser.parse_args()
    versions: dict[str, str] = {"numpy": np.__version__}
    if args.program == "transformers":
        from benchmarks.torchvision_import import import_torchvision

        versions["torchvision"] = import_torchvision()
        import torch
        from transformers import __version__

        versions |= {"transformers": __version__, "torch": torch.__version__}
    run = {"ours": ours, "transformers": transformers, "memory": memory}[args.program]
    serve(lambda: ({"versions": versions}, {"run": lambda: run(args.path)}))


if __name__ == "__main__":
    main()
