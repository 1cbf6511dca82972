"""Generation by our engine or by transformers, from one folder of weights, as a worker of `benchmarks/engine.py`."""

import argparse
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.shapes import SHAPES
from benchmarks.worker import serve

LENGTHS = (128, 16, 96, 40, 64, 24, 112, 80)
"""Tokens of the prompts."""
NEW = 64
"""Tokens of each answer."""
CONTEXT = 256
REPORTED = 16
"""Steps of a dispatch."""
COPIED = 1 << 28
"""Bytes of the array whose copy is timed."""


def prompts(shape: str) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, SHAPES[shape].vocab_size, length).tolist() for length in LENGTHS]


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write(shape: str, folder: pathlib.Path) -> dict[str, Any]:
    """Writes random weights as a Hugging Face folder."""
    from benchmarks.ours import model_config
    from maverick_jax.model.transformer import Maverick
    from maverick_jax.pretrained import save_pretrained

    if not folder.exists():
        save_pretrained(Maverick.init(model_config(SHAPES[shape])), folder, "float32")
    return {}


def ours(shape: str, folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Callable[[], dict[str, Any]]]]:
    """Seconds of eight requests together and of one after the other, of a step, and of the copy of an array."""
    import jax
    import jax.numpy as jnp

    from maverick_jax.inference.engine import EngineSettings, GenerationRequest, SlotEngine
    from maverick_jax.inference.sampling import Sampling
    from maverick_jax.pretrained import load_layers

    model = load_layers(folder, dtype="float32")
    settings = lambda slots: EngineSettings(slots=slots, context=CONTEXT, steps=REPORTED, keep_bytes=0)
    together, alone = (SlotEngine(model, None, settings(slots)) for slots in (len(LENGTHS), 1))
    requests = [GenerationRequest(prompt, NEW, Sampling(0.0)) for prompt in prompts(shape)]
    array = jnp.zeros(COPIED // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)

    def all_at_once() -> list[list[int]]:
        return [list(g.result().tokens) for g in [together.submit(request)[0] for request in requests]]

    def eight() -> dict[str, Any]:
        return {"seconds": timed(all_at_once), "tokens": all_at_once()}

    def one() -> dict[str, Any]:
        return {"seconds": timed(lambda: [alone.submit(request)[0].result() for request in requests])}

    def step() -> dict[str, Any]:
        """A step of the program alone, and within the engine, which computes prompts of a token first."""
        short = [GenerationRequest([1], CONTEXT - 1, Sampling(0.0)) for _ in LENGTHS]
        within = timed(lambda: [g.result() for g in [together.submit(request)[0] for request in short]])
        devices = together._device

        def program():
            with devices.entered():
                devices._cache, devices._slots, steps = devices._decode[REPORTED](
                    devices._weights, devices._cache, devices._slots
                )
                jax.block_until_ready(steps)

        for slot in range(len(LENGTHS)):
            with devices.entered():
                devices.begin(slot, short[0], 0)
        count = (CONTEXT - 1) // REPORTED
        seconds = min(timed(program) for _ in range(count)) / REPORTED
        dispatched = within / (CONTEXT - 1)
        return {"program": seconds, "within": dispatched}

    def copied() -> dict[str, Any]:
        jax.block_until_ready(copy(array))
        return {"seconds": min(timed(lambda: jax.block_until_ready(copy(array))) for _ in range(5))}

    facts = {"compilations": together.status().compilations, "versions": {"jax": jax.__version__}}
    return facts, {"eight": eight, "one": one, "step": step, "copy": copied}


def theirs(shape: str, folder: pathlib.Path, threads: int) -> tuple[dict[str, Any], dict[str, Callable]]:
    """Seconds of a batch of eight by `generate`, padded on the left."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    longest = max(LENGTHS)
    ids = np.zeros((len(LENGTHS), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, real, prompt in zip(ids, mask, prompts(shape), strict=True):
        row[-len(prompt) :], real[-len(prompt) :] = prompt, 1
    options = {
        "do_sample": False,
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def eight() -> dict[str, Any]:
        found = []
        with torch.inference_mode():
            seconds = timed(lambda: found.append(model.generate(**inputs, **options)))
        return {"seconds": seconds, "tokens": found[0][:, longest:].tolist()}

    return {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}}, {"eight": eight}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("ours", "transformers"))
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    if args.kind == "ours":
        write(args.shape, args.folder)
        serve(lambda: ours(args.shape, args.folder))
    else:
        serve(lambda: theirs(args.shape, args.folder, args.threads))


if __name__ == "__main__":
    main()
