"""Peak memory of a pretraining or distillation step at a large vocabulary, as a worker."""

import argparse
import dataclasses
import resource
from typing import Any

import jax

from benchmarks.distillation_steps import TEACHER, Steps
from benchmarks.shapes import SHAPES
from benchmarks.worker import serve
from maverick_jax.sharding import make_mesh

VOCABULARY = 202_048
LARGE = dataclasses.replace(SHAPES["tiny"], vocab_size=VOCABULARY, batch_size=4)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--step", choices=["pretrain", "online"], required=True)
    name = parser.parse_args().step

    def start() -> tuple[dict[str, Any], dict[str, Any]]:
        teacher = dataclasses.replace(TEACHER, vocab_size=VOCABULARY)
        with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
            steps = Steps(LARGE, teacher, [name])
            loss = [steps.loss(name) for _ in range(2)][-1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = {"peak_bytes": peak, "loss": loss, "teacher_bytes": steps.teacher_bytes, "tokens": LARGE.tokens}
        return found, {}

    serve(start)


if __name__ == "__main__":
    main()
