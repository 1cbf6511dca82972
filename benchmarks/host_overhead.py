#!/usr/bin/env python
"""Measure the host's time per step, with a model so small that the device's time is negligible.

    python benchmarks/host_overhead.py

The last line of output is one JSON object. The CPU time of the main thread is measured: XLA computes in other threads,
and other work on the machine lengthens only the wall time.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from benchmarks.ours import fresh, host_batch, model_config, parts, place
from benchmarks.shapes import SHAPES
from maverick_jax.sharding import make_mesh
from train.faults.non_finite import NonFiniteBudget
from train.hooks import TrainingLines
from train.loop import fit
from train.metrics_writer import MetricsWriter
from train.rollouts.source import from_data
from train.step import compile_step

SHAPE = SHAPES["trivial"]


def measure(steps: int) -> dict[str, Any]:
    """CPU seconds per step of the bare call, and CPU and wall seconds per step of the loop with its hooks."""
    config = model_config(SHAPE)
    step_parts = parts(config, packed=True)
    state, batch = fresh(config, step_parts), place(host_batch(SHAPE))
    step = compile_step(state, batch, **step_parts)
    for _ in range(SHAPE.warmup):
        state, metrics = step(state, batch)
    jax.block_until_ready(state)
    dispatch = []
    for _ in range(steps):
        cpu = time.thread_time()
        state, metrics = step(state, batch)
        dispatch.append(time.thread_time() - cpu)
        jax.block_until_ready((state, metrics))  # so that the queue is empty at the next call
    loop_cpu, loop_wall = _loop(step, state, steps)
    return {
        "benchmark": "host_overhead",
        "dispatch_seconds": statistics.median(dispatch),
        "host_seconds": loop_cpu / steps,
        "step_seconds": loop_wall / steps,
        "steps": steps,
        "load_average": os.getloadavg()[0],
        "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
    }


def _loop(step, state, steps: int) -> tuple[float, float]:
    """The main thread's CPU seconds and the wall seconds of `steps` updates in the training loop, with a metrics line
    for each."""
    batches = (place(local) for local in itertools.repeat(host_batch(SHAPE)))
    with tempfile.TemporaryDirectory() as run_dir:
        lines = TrainingLines(MetricsWriter(run_dir), every=1, last_step=steps, tokens_per_step=SHAPE.tokens)
        cpu, wall = time.thread_time(), time.perf_counter()
        fit(step, state, from_data(batches), start=0, stop=steps, hooks=[lines, NonFiniteBudget(steps)])
        return time.thread_time() - cpu, time.perf_counter() - wall


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=SHAPE.steps)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        result = measure(args.steps)
    if not args.json:
        print(
            f"host: {result['host_seconds'] * 1e3:.2f} ms a step in the loop, "
            f"{result['dispatch_seconds'] * 1e3:.2f} ms of it to dispatch the step"
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
