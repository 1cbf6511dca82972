#!/usr/bin/env python
"""Time full train steps of ours and of a peer in turns: forward, backward, clipping, AdamW.

    python benchmarks/train_step.py --shape tiny --against transformers

The last line of output is one JSON object; `benchmarks/README.md` explains its numbers.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import maxtext_peer
from benchmarks.shapes import SHAPES, Shape
from benchmarks.worker import Worker, WorkerFailed, take_cpus
from maverick_jax.errors import InputError, MaverickError


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The result, as in the last line of output. Raises InputError and WorkerFailed."""
    shape = SHAPES[args.shape]
    steps, warmup = args.steps or shape.steps, shape.warmup
    take_cpus(args.threads)
    if args.against == "maxtext":
        args.maxtext = maxtext_peer.find(args.maxtext_python)
    began = time.time()
    ours = ["--shape", args.shape, "--dtype", args.dtype, "--remat", args.remat, *(["--packed"] if args.packed else [])]
    with Worker("benchmarks.ours", ours) as mine:
        log(f"ours: compiled in {mine.ready['compile_seconds']:.1f} s")
        for _ in range(warmup - 1):
            mine.ask("step")
        run = {"none": _alone, "transformers": _with_transformers, "maxtext": _with_maxtext}[args.against]
        timed = run(args, shape, mine, steps)
        return _header(args, began) | _result(shape, mine, timed)


# ---- peers -----------------------------------------------------------------------------------------------------------


def _alone(args: argparse.Namespace, shape: Shape, mine: Worker, steps: int) -> dict[str, Any]:
    return {"ours": [_ours(mine) for _ in range(steps)]}


def _with_transformers(args: argparse.Namespace, shape: Shape, mine: Worker, steps: int) -> dict[str, Any]:
    """Pairs of one step of ours and one of theirs. The ratio is the median of the pairs' ratios, so that other load on
    the machine affects both sides."""
    arguments = ["--shape", args.shape, "--dtype", args.dtype, "--threads", str(args.threads)]
    with Worker("benchmarks.transformers_peer", arguments) as theirs:
        if theirs.ready["num_parameters"] != mine.ready["num_parameters"]:
            raise WorkerFailed(
                f"the two models differ: {mine.ready['num_parameters']} parameters of ours, "
                f"{theirs.ready['num_parameters']} of theirs"
            )
        for _ in range(shape.warmup - 1):
            theirs.ask("step")
        ours_taken, peer_taken = [], []
        for pair in range(steps):
            ours_taken.append(_ours(mine))
            peer_taken.append(theirs.ask("step"))
            log(f"pair {pair + 1}/{steps}: {ours_taken[-1]['seconds']:.3f} s, {peer_taken[-1]['seconds']:.3f} s")
        return {
            "ours": ours_taken,
            "ratio": statistics.median(
                a["seconds"] / b["seconds"] for a, b in zip(ours_taken, peer_taken, strict=True)
            ),
            "peer_seconds": [step["seconds"] for step in peer_taken],
            "peer_cpu_seconds": [step["cpu_seconds"] for step in peer_taken],
            "peer_bytes": peer_taken[-1]["peak_bytes"],
            "peer_facts": {
                "peer_first_step_cpu_seconds": theirs.ready["first_step_cpu_seconds"],
                "peer_first_loss": theirs.ready["first_loss"],
            },
            "peer_versions": theirs.ready["versions"],
        }


def _with_maxtext(args: argparse.Namespace, shape: Shape, mine: Worker, steps: int) -> dict[str, Any]:
    """MaxText runs as one program and cannot run single steps, so half of our steps run before it and half after."""
    before = [_ours(mine) for _ in range(-(-steps // 2))]
    theirs = maxtext_peer.run(args.maxtext, shape, dtype=args.dtype, steps=steps)
    taken = before + [_ours(mine) for _ in range(steps - len(before))]
    ours_median = statistics.median(step["seconds"] for step in taken)
    return {
        "ours": taken,
        "ratio": ours_median / statistics.median(theirs.step_seconds),
        "peer_seconds": theirs.step_seconds,
        "peer_bytes": theirs.peak_bytes,
        "peer_versions": {"maxtext": args.maxtext.version},
    }


def _ours(mine: Worker) -> dict[str, float]:
    """One step of ours, and the machine's matrix rate directly after it."""
    return mine.ask("step") | mine.ask("matrix_rate")


# ---- the result ------------------------------------------------------------------------------------------------------


def _header(args: argparse.Namespace, began: float) -> dict[str, Any]:
    return {
        "benchmark": "train_step",
        "shape": args.shape,
        "against": args.against,
        "dtype": args.dtype,
        "remat": args.remat,
        "packed": args.packed,
        "threads": args.threads,
        "python": platform.python_version(),
        "machine": machine(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": round(time.time() - began, 1),
        "load_average": os.getloadavg()[0],
    }


def _result(shape: Shape, mine: Worker, timed: dict[str, Any]) -> dict[str, Any]:
    ours, ready = timed["ours"], mine.ready
    seconds = statistics.median(step["seconds"] for step in ours)
    peak_rate = max(step["flops_per_second"] for step in ours)
    peak_bytes = ours[-1]["peak_bytes"]
    peer_bytes, peer_seconds = timed.get("peer_bytes"), timed.get("peer_seconds")
    result = {
        "ratio": timed.get("ratio"),
        "fraction_of_peak": ready["flops"] / seconds / peak_rate,
        "peak_memory_ratio": peak_bytes / peer_bytes if peer_bytes else None,
        "step_seconds": seconds,
        "step_cpu_seconds": statistics.median(step["cpu_seconds"] for step in ours),
        "tokens_per_second": shape.tokens / seconds,
        "peak_memory_bytes": peak_bytes,
        "first_step_cpu_seconds": ready["first_step_cpu_seconds"],
        "first_step_seconds": mine.start_seconds,
        "first_loss": ready["first_loss"],
        "compile_seconds": ready["compile_seconds"],
        "flops_per_step": ready["flops"],
        "matrix_flops_per_second": peak_rate,
        "num_parameters": ready["num_parameters"],
        "timed_steps": [step["seconds"] for step in ours],
        "versions": ready["versions"] | timed.get("peer_versions", {}),
    }
    if peer_seconds:
        result |= {
            "peer_step_seconds": statistics.median(peer_seconds),
            "peer_tokens_per_second": shape.tokens / statistics.median(peer_seconds),
            "peer_peak_memory_bytes": peer_bytes,
            "peer_timed_steps": peer_seconds,
        } | timed.get("peer_facts", {})
    if "peer_cpu_seconds" in timed:
        result["peer_step_cpu_seconds"] = statistics.median(timed["peer_cpu_seconds"])
    return result


def machine() -> str:
    """The processor's name."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--shape", choices=["tiny", "big"], default="tiny")
    parser.add_argument("--against", choices=["transformers", "maxtext", "none"], default="transformers")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="compute dtype")
    parser.add_argument("--remat", choices=["none", "dots", "attention", "full"], default="none", help="for ours")
    parser.add_argument(
        "--packed", action="store_true", help="ours with segments and positions, as in a run on packed rows"
    )
    parser.add_argument("--steps", type=int, help="timed steps of each program; default: 10 for tiny, 2 for big")
    parser.add_argument("--threads", type=int, default=2, help="processors for each program")
    parser.add_argument("--maxtext-python", metavar="PATH", help="the interpreter of an environment with MaxText")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args(argv)
    if args.steps is not None and args.steps < 1:
        raise InputError(f"--steps {args.steps}: expected at least 1")
    if args.against == "maxtext" and not args.maxtext_python:
        raise InputError(
            "--against maxtext needs --maxtext-python PATH: MaxText needs Python 3.12 or later, so it runs in a "
            "separate environment"
        )
    return args


def summary(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [
        f"{result['shape']}, {result['dtype']}: {result['step_seconds']:.3f} s a step, "
        f"{result['tokens_per_second']:,.0f} tokens/s, {result['fraction_of_peak']:.1%} of the matrix rate, "
        f"{result['peak_memory_bytes'] / 2**30:.2f} GiB"
    ]
    if result["ratio"] is not None:
        lines.append(
            f"{result['against']}: {result['peer_step_seconds']:.3f} s a step, "
            f"{result['peer_peak_memory_bytes'] / 2**30:.2f} GiB; ours takes {result['ratio']:.2f} of its time and "
            f"{result['peak_memory_ratio']:.2f} of its memory"
        )
    return "\n".join(lines)


def main() -> int:
    try:
        args = parse()
        result = measure(args)
    except MaverickError as error:
        log(str(error))
        return error.exit_code
    if not args.json:
        print(summary(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
