"""Generation by our engine or by transformers, from one folder of weights, as a worker of `benchmarks/engine.py`."""

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

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
NEXT_TO_NOTHING = {"hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8, "num_attention_heads": 4,
                   "num_key_value_heads": 2, "vocab_size": 64, "num_local_experts": 2, "intermediate_size": 32,
                   "intermediate_size_mlp": 32}  # fmt: skip
"""Changes of a shape for a model of little arithmetic."""
COPIED = 1 << 28
"""Bytes of the array whose copy is timed."""


def prompts(shape: str) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, SHAPES[shape].vocab_size, length).tolist() for length in LENGTHS]


class Spent(NamedTuple):
    """What some work took: seconds by the clock, and of processors, which other programs on the machine change less."""

    seconds: float
    cpu_seconds: float

    def per(self, count: int) -> "Spent":
        return Spent(self.seconds / count, self.cpu_seconds / count)


def timed(work: Callable[[], Any]) -> Spent:
    began, used = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - began, time.process_time() - used)


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

    from benchmarks.ours import model_config
    from maverick_jax.inference.engine import EngineSettings, GenerationRequest, SlotEngine
    from maverick_jax.inference.sampling import Sampling
    from maverick_jax.model.transformer import Maverick
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
        found = []
        spent = timed(lambda: found.extend(all_at_once()))
        return {**spent._asdict(), "tokens": found}

    def one() -> dict[str, Any]:
        return timed(lambda: [alone.submit(request)[0].result() for request in requests])._asdict()

    def step() -> dict[str, Any]:
        """A step of the program alone, the fastest of several dispatches."""
        devices, short = together._device, GenerationRequest([1], CONTEXT - 1, Sampling(0.0))

        def program():
            with devices.entered():
                devices._cache, devices._slots, steps = devices._decode[REPORTED](
                    devices._weights, devices._cache, devices._slots
                )
                jax.block_until_ready(steps)

        for slot in range(len(LENGTHS)):
            with devices.entered():
                devices.begin(slot, short, 0)
        spent = [timed(program) for _ in range((CONTEXT - 1) // REPORTED)]
        best = min(spent, key=lambda one: one.seconds)
        return {"program": best.seconds / REPORTED, "program_cpu": best.cpu_seconds / REPORTED}

    def host() -> dict[str, Any]:
        """Steps of a model that computes next to nothing, one per dispatch: what is left is the host's work."""
        small = dataclasses.replace(SHAPES["tiny"], **NEXT_TO_NOTHING)
        idle = EngineSettings(slots=len(LENGTHS), context=CONTEXT, steps=1, keep_bytes=0)
        with SlotEngine(Maverick.init(model_config(small)), None, idle) as engine:
            short = [GenerationRequest([1], CONTEXT - 1, Sampling(0.0)) for _ in LENGTHS]
            run = lambda: [g.result() for g in [engine.submit(request)[0] for request in short]]
            run()
            return timed(run).per(CONTEXT - 1)._asdict()

    def copied() -> dict[str, Any]:
        jax.block_until_ready(copy(array))
        return {"seconds": min(timed(lambda: jax.block_until_ready(copy(array))).seconds for _ in range(5))}

    facts = {"compilations": together.status().compilations, "versions": {"jax": jax.__version__}}
    return facts, {"eight": eight, "one": one, "step": step, "host": host, "copy": copied}


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
            spent = timed(lambda: found.append(model.generate(**inputs, **options)))
        return {**spent._asdict(), "tokens": found[0][:, longest:].tolist()}

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
