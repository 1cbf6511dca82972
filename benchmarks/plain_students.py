#!/usr/bin/env python
"""What a plain model keeps of a teacher with latents: right answers in pointer chasing of distilled plain students.

    python benchmarks/plain_students.py --work FOLDER [--seeds 0] [--variants shallow deep "deep, alone"]

FOLDER is that of benchmarks/latent_thoughts.py, whose runs `start`, `latents` and `pauses` are trained if missing.
A student reads the rows of `pauses`, with tokens at the places of latents, for as many updates. It begins as the text
model, `deep` with its two layers four times, as many as the teacher runs one after the other. `deep, alone` has no
teacher. The last line is one JSON object.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import latent_thoughts as chain
from maverick_jax.pretrained import load_pretrained

DEPTH = chain.HOPS + 1
"""Times that the teacher runs its layers for a row."""
VARIANTS = ("shallow", "deep", "deep, alone")


def student_config(variant: str, seed: int, work: pathlib.Path) -> dict[str, Any]:
    """The whole config of a student: that of `pauses`, with another objective and depth."""
    config = chain.run_config("pauses", seed, work)
    config["run"]["dir"] = str(folder(variant, seed, work))
    if variant != "shallow":
        layers = chain.MODEL["num_hidden_layers"]
        config["model"] |= {"num_hidden_layers": DEPTH * layers, "init_layers": [*range(layers)] * DEPTH}
    if not variant.endswith("alone"):
        config["objective"] = {"kind": "distill", "teacher": str(chain.folder("latents", seed, work))}
    return config


def folder(variant: str, seed: int, work: pathlib.Path) -> pathlib.Path:
    return chain.folder(f"student {variant}", seed, work)


def measured(variant: str, seed: int, work: pathlib.Path) -> dict[str, Any]:
    """Right answers of a student, trained if it is missing, and what it keeps of the teacher's gain over pauses."""
    found: dict[str, Any] = {"variant": variant, "seed": seed}
    for name in ("start", "latents", "pauses"):
        chain.trained(name, seed, work)
    found["cpu_seconds"] = chain.trained_run(student_config(variant, seed, work), folder(variant, seed, work))
    teacher, pauses, student = (
        chain.right(load_pretrained(path), chain.HOPS, True)
        for path in (*(chain.folder(name, seed, work) for name in ("latents", "pauses")), folder(variant, seed, work))
    )
    kept = (student - pauses) / (teacher - pauses)
    return found | {"teacher": teacher, "pauses": pauses, "right": student, "kept": kept}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for the runs")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in args.seeds:
        for variant in args.variants:
            runs.append(run := measured(variant, seed, args.work))
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in run.items()}, file=sys.stderr, flush=True)
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
