#!/usr/bin/env python
"""Compare the time to trace and compile the train step of a shallow and of a deep model.

    python benchmarks/compile_time.py

The last line of output is one JSON object. Layers are stacked and scanned, so depth should add almost no time.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.shapes import SHAPES
from benchmarks.worker import environment


def compile_once(layers: int) -> dict[str, Any]:
    """Seconds to lower and compile the train step of `tiny` with this number of layers, in a fresh process."""
    import jax

    from benchmarks.ours import fresh, host_batch, model_config, parts, place
    from maverick_jax.sharding import make_mesh
    from train.step import compile_step

    shape = dataclasses.replace(SHAPES["tiny"], num_hidden_layers=layers)
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        config = model_config(shape)
        step_parts = parts(config, packed=True)
        state, batch = fresh(config, step_parts), place(host_batch(shape))
        jax.block_until_ready(state)
        wall, cpu = time.perf_counter(), time.process_time()
        compile_step(state, batch, **step_parts)
        return {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
        }


def measure(shallow: int, deep: int, times: int) -> dict[str, Any]:
    """Medians over `times` fresh processes per depth, which take turns."""
    os.environ.update(environment())
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    found: dict[int, list[dict[str, Any]]] = {shallow: [], deep: []}
    spawn = multiprocessing.get_context("spawn")
    for layers in [shallow, deep] * times:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as fresh:
            found[layers].append(fresh.submit(compile_once, layers).result())
    median = lambda layers, key: statistics.median(run[key] for run in found[layers])
    return {
        "benchmark": "compile_time",
        "layers": [shallow, deep],
        "ratio": median(deep, "cpu_seconds") / median(shallow, "cpu_seconds"),
        "cpu_seconds": [median(shallow, "cpu_seconds"), median(deep, "cpu_seconds")],
        "seconds": [median(shallow, "seconds"), median(deep, "seconds")],
        "times": times,
        "load_average": os.getloadavg()[0],
        "versions": found[shallow][0]["versions"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--layers", type=int, nargs=2, default=[8, 24], metavar=("SHALLOW", "DEEP"))
    parser.add_argument("--times", type=int, default=3, help="number of processes for each depth")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    result = measure(*args.layers, args.times)
    if not args.json:
        (shallow, deep), cpu = result["layers"], result["cpu_seconds"]
        print(f"compile: {cpu[0]:.1f} CPU s for {shallow} layers, {cpu[1]:.1f} for {deep}: ratio {result['ratio']:.2f}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
