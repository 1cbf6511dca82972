#!/usr/bin/env python
"""Time the products of several experts, each beside one plain product of as many FLOPs.

    python benchmarks/grouped_product.py [--rows M] [--model K] [--hidden F] [--experts E]

The last line of output is one JSON object. Without sizes: those of Maverick with 16 experts on an accelerator, small
ones on CPUs. The kernel is the one that a run gets; its numbers are compared with plain products of each expert's rows.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from maverick_jax.ops.dot import dot
from maverick_jax.ops.grouped_matmul import grouped_swiglu
from maverick_jax.ops.grouped_matmul.megablox import PRODUCTS as MEGABLOX
from maverick_jax.ops.grouped_matmul.mosaic import PRODUCTS as MOSAIC
from maverick_jax.ops.kernels import recorded
from maverick_jax.sharding import single_device_mesh
from maverick_jax.target import traced_kind, traced_platform

SIZES = {"cpu": (512, 64, 96, 4)}
ACCELERATOR = (32768, 5120, 8192, 16)
"""Rows, model width, hidden units and experts; the first product has twice the hidden units as columns."""
PRODUCTS = {"mosaic": MOSAIC, "megablox": MEGABLOX}
"""Of kernels that are made of products of sorted rows, these."""
TOLERANCE = 0.01
"""Largest |error| / |exact| of a product in bfloat16, which is rounded once, by 0.2% on average."""

Call = Callable[[], jax.Array]


def measure(rows: int, model: int, hidden: int, experts: int, rounds: int) -> dict[str, Any]:
    """Median rates over `rounds`, in which all calls take turns."""
    rng = np.random.default_rng(0)
    dtype = jnp.float32 if traced_platform() == "cpu" else jnp.bfloat16
    make = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32) * shape[-2] ** -0.5, dtype)
    x, w_in, w_out = make(rows, model), make(experts, model, 2, hidden), make(experts, hidden, model)
    # a load as uneven as that of a trained router, rather than equal groups on the borders of blocks
    expert = jnp.asarray(rng.choice(experts, rows, p=rng.dirichlet(np.full(experts, 20.0))), jnp.int32)
    with recorded() as choices:
        calls = _swiglu(x, w_in, w_out, expert) | _plain(x, w_in)
        for call, _ in calls.values():
            jax.block_until_ready(call())
    kernel = next(choice.kernel for choice in choices if choice.operation.startswith("grouped product"))
    errors = {}
    if kernel in PRODUCTS:
        found, errors = _products(PRODUCTS[kernel], x, w_in.reshape(experts, model, 2 * hidden), expert)
        calls |= found
    rates = _rates(calls, rounds)
    plain = rates.pop("plain")
    return {
        "benchmark": "grouped_product",
        "device": traced_kind(),
        "kernel": kernel,
        "chosen": [str(choice) for choice in choices],
        "dtype": jnp.dtype(dtype).name,
        "rows": rows,
        "model": model,
        "hidden": hidden,
        "experts": experts,
        "plain_flops_per_second": plain,
        "flops_per_second": rates,
        "ratios": {name: rate / plain for name, rate in rates.items()},
        "errors": errors,
        "rounds": rounds,
        "load_average": os.getloadavg()[0],
        "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
    }


def _plain(x, w_in) -> dict[str, tuple[Call, float]]:
    """The product of all rows with the first expert's gate and up."""
    w = w_in[0].reshape(x.shape[1], -1)
    product = jax.jit(lambda x, w: dot(x, w, (1,), (0,)).astype(x.dtype))
    return {"plain": (functools.partial(product, x, w), 2.0 * x.shape[0] * w.size)}


def _swiglu(x, w_in, w_out, expert) -> dict[str, tuple[Call, float]]:
    """Forward, and forward and backward, by useful FLOPs."""
    one = 2.0 * x.shape[0] * (w_in[0].size + w_out[0].size)
    scored = lambda *args: jnp.sum(grouped_swiglu(*args, expert).astype(jnp.float32))
    both = jax.jit(jax.grad(scored, (0, 1, 2)))
    return {
        "experts": (functools.partial(jax.jit(grouped_swiglu), x, w_in, w_out, expert), one),
        "experts and gradient": (functools.partial(both, x, w_in, w_out), 3 * one),
    }


def _products(products, x, w, expert) -> tuple[dict[str, tuple[Call, float]], dict[str, float]]:
    """Calls of the three products of rows, sorted by expert, and w [E, K, N]; and their errors."""
    sizes = np.bincount(np.asarray(expert), minlength=len(w))
    sizes_here, flops = jnp.asarray(sizes, jnp.int32), 2.0 * x.shape[0] * w[0].size
    y = jax.jit(products.forward)(x, w, sizes_here)
    arguments = {"forward": (x, w), "backward": (y, w), "weights": (x, y)}
    calls = {name: functools.partial(jax.jit(getattr(products, name)), *args, sizes_here)
             for name, args in arguments.items()}  # fmt: skip
    ends = np.cumsum(sizes)
    groups = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
    exact = {
        "forward": lambda e, rows: dot(x[rows], w[e], (1,), (0,)),
        "backward": lambda e, rows: dot(y[rows], w[e], (1,), (1,)),
        "weights": lambda e, rows: dot(x[rows], y[rows], (0,), (0,)),
    }
    errors = {}
    for name, call in calls.items():
        found, worst = call(), 0.0
        for e, rows in enumerate(groups):
            expected = exact[name](e, rows)
            here = (found[e] if name == "weights" else found[rows]).astype(jnp.float32)
            worst = max(worst, float(jnp.linalg.norm(here - expected) / jnp.linalg.norm(expected)))
        errors[name] = worst
    return {name: (call, flops) for name, call in calls.items()}, errors


def _rates(calls: dict[str, tuple[Call, float]], rounds: int) -> dict[str, float]:
    """FLOP/s."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, _) in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - began)
    return {name: flops / statistics.median(seconds[name]) for name, (_, flops) in calls.items()}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    for name in ("rows", "model", "hidden", "experts"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--rounds", type=int, default=20, help="number of timings of each product")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args(words)
    given = args.rows, args.model, args.hidden, args.experts
    if any(number is not None and number < 1 for number in (*given, args.rounds)):
        parser.error("expected numbers from 1")
    with jax.set_mesh(single_device_mesh()):
        usual = SIZES.get(traced_platform(), ACCELERATOR)
        result = measure(*(a or b for a, b in zip(given, usual, strict=True)), args.rounds)
    if not args.json:
        tera = lambda rate: f"{rate / 1e12:,.4g} TFLOP/s"
        print(f"{result['kernel']} on {result['device']}; plain product {tera(result['plain_flops_per_second'])}")
        for name, rate in result["flops_per_second"].items():
            error = f", error {result['errors'][name]:.2%}" if name in result["errors"] else ""
            print(f"  {name}: {tera(rate)}, {result['ratios'][name]:.2f} of it{error}")
    print(json.dumps(result))
    if wrong := [name for name, error in result["errors"].items() if not error < TOLERANCE]:
        print(f"wrong results: {', '.join(wrong)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
