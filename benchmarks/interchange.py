#!/usr/bin/env python
"""Measure the rate of importing and exporting a Hugging Face folder, relative to a plain copy of the same files.

    python benchmarks/interchange.py import|export [--experts 4] [--rounds 3] [--scratch FOLDER]

The last line of output is one JSON object. The model has Maverick's real widths and random bfloat16 weights. Copy and
conversion take turns on the same disk; each starts with its source out of the page cache and ends when everything is
on disk. A conversion runs in its own process, whose peak resident memory (including mapped pages) is reported. `ratio`
is the rate of the conversion over that of the copy, the median over the rounds. It needs disk space for three models.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import ml_dtypes
import numpy as np

GB = 10**9
_COPY_BYTES = 16 * 2**20


# ---- a model -------------------------------------------------------------------------------------------------------


def model_config(experts: int):
    """One period of Maverick (four layers, two of them with experts) at its real widths, with a small vocabulary."""
    from maverick_jax.config import ModelConfig

    return ModelConfig.from_name("maverick_17b_128e").model_copy(
        update={"num_hidden_layers": 4, "num_local_experts": experts, "vocab_size": 16384, "param_dtype": "bfloat16"}
    )


def write_folder(folder: pathlib.Path, experts: int, shard_bytes: int = GB) -> int:
    """Write a folder with random bfloat16 weights of that model; returns its bytes. It needs little memory."""
    from maverick_jax.huggingface.config import write_config
    from maverick_jax.huggingface.names import table
    from maverick_jax.model_source import shapes_of

    config = model_config(experts)
    folder.mkdir(parents=True)
    ids: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    (folder / "config.json").write_text(json.dumps(write_config(config, "bfloat16", ids, 262144)))
    shards: list[list] = [[]]
    for entry in table(shapes_of(config)):
        size = 2 * int(np.prod(entry.their_shape))
        if shards[-1] and sum(s for _, s in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append((entry, size))
    random = np.random.default_rng(0)
    weight_map = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= {entry.theirs: name for entry, _ in shard}
        _write_file(folder / name, shard, random)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(size for shard in shards for _, size in shard)


def _write_file(path: pathlib.Path, shard: list, random: np.random.Generator) -> None:
    header, end = {}, 0
    for entry, size in shard:
        header[entry.theirs] = {"dtype": "BF16", "shape": entry.their_shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while end:
            bits = random.integers(0, 2**16, min(end // 2, 2**23), np.uint16) & 0xBFFF  # finite: magnitude below two
            end -= file.write(bits.view(ml_dtypes.bfloat16).tobytes())
        os.fsync(file.fileno())


# ---- measurements --------------------------------------------------------------------------------------------------


def drop_cache(folder: pathlib.Path) -> None:
    """Drop the folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def copy(source: pathlib.Path, out: pathlib.Path) -> float:
    """Seconds of a plain sequential copy until it is on disk."""
    drop_cache(source)
    started = time.perf_counter()
    out.mkdir()
    for path in sorted(source.iterdir()):
        with path.open("rb") as file, (out / path.name).open("wb") as written:
            shutil.copyfileobj(file, written, _COPY_BYTES)
            written.flush()
            os.fsync(written.fileno())
    return time.perf_counter() - started


def convert(which: str, source: pathlib.Path, out: pathlib.Path) -> dict[str, float]:
    """`seconds` and `peak_bytes` of a conversion in its own process, and `process_seconds` including its start."""
    drop_cache(source)
    started = time.perf_counter()
    command = [sys.executable, __file__, "--alone", which, str(source), str(out)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(text.splitlines()[-1]) | {"process_seconds": time.perf_counter() - started}


def _import(source: str, out: str) -> None:
    from maverick_jax.pretrained import import_checkpoint

    import_checkpoint(source, out)


def _export(source: str, out: str) -> None:
    from maverick_jax.pretrained import export

    export(source, out)


CONVERSIONS: dict[str, Callable[[str, str], None]] = {"import": _import, "export": _export}


def alone(which: str, source: str, out: str) -> dict[str, float]:
    """Run a conversion; called in its own process."""
    import maverick_jax.pretrained  # noqa: F401  (import libraries before the timer starts)

    started = time.perf_counter()
    CONVERSIONS[which](source, out)
    seconds = time.perf_counter() - started
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return {"seconds": seconds, "peak_bytes": int(status["VmHWM"].split()[0]) * 1024}


def measure(which: str, experts: int, rounds: int, scratch: pathlib.Path) -> dict[str, Any]:
    started = time.strftime("%Y-%m-%d")
    folder = source = scratch / "folder"
    size = write_folder(folder, experts)
    if which == "export":
        source = scratch / "checkpoint"
        convert("import", folder, source)
    copies, conversions = [], []
    for _ in range(rounds):
        copies.append(copy(folder, scratch / "copy"))
        shutil.rmtree(scratch / "copy")
        conversions.append(convert(which, source, scratch / "out"))
        shutil.rmtree(scratch / "out")
        rates = [size / s / 1e6 for s in (copies[-1], conversions[-1]["seconds"])]
        peak = conversions[-1]["peak_bytes"] / 2**20
        print(f"copy {rates[0]:.0f} MB/s, {which} {rates[1]:.0f} MB/s, {peak:.0f} MiB", file=sys.stderr, flush=True)
    seconds = [c["seconds"] for c in conversions]
    return {
        "benchmark": "interchange",
        "which": which,
        "ratio": statistics.median(a / b for a, b in zip(copies, seconds, strict=True)),
        "bytes": size,
        "copy_bytes_per_second": size / statistics.median(copies),
        "bytes_per_second": size / statistics.median(seconds),
        "seconds": statistics.median(seconds),
        "process_seconds": statistics.median(c["process_seconds"] for c in conversions),
        "peak_bytes": max(c["peak_bytes"] for c in conversions),
        "experts": experts,
        "started": started,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=sorted(CONVERSIONS))
    parser.add_argument("--experts", type=int, default=4, help="experts in each of two layers, 0.5 GB each (4: 4.4 GB)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="accepted as in other benchmarks; only JSON is printed")
    parser.add_argument("--scratch", type=pathlib.Path, help="a folder on the disk to measure")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        print(json.dumps(measure(args.which, args.experts, args.rounds, pathlib.Path(scratch))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(alone(*sys.argv[2:])))
    else:
        main()
