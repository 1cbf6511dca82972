#!/usr/bin/env python
"""Measure the bias from storing only a teacher's top k, for each way to estimate the divergence from them.

    python benchmarks/targets_bias.py runs/teacher --student runs/student [--config CONFIG] [--k 8 32 128]

Teacher and student are run directories, checkpoints or Hugging Face folders with the same vocabulary; without
`--student` the student is an untrained model of the teacher's shape. Rows are the held-out rows of the config (default:
the teacher's `config.yaml`); all computation is in float32 on one device. Log-probabilities are rounded to `--dtype`,
as on disk. Divergences are forward KL in nats per label at temperature 1; `mass` is the teacher's mass in its top k,
`student_mass` the student's on the same tokens; a bias is the mean of an estimate minus that of the full KL. `sampled`
draws `--samples` tokens from the tail; its `error` is the standard error of its bias over batches. The last line of
output is one JSON object.
"""

import argparse
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

MODES = ("tail", "renormalised", "sampled")


def program(teacher, student, args):
    """(batch [b, T], k -> uniforms) -> sums over a batch: weight of labels, and divergences and masses per estimate."""
    import jax
    import jax.numpy as jnp

    from maverick_jax.model.inputs import Inputs
    from maverick_jax.ops.distillation import Divergence, Weighed, distillation, whole_target
    from maverick_jax.ops.sparse_targets import TopKTargets, sparse_target
    from maverick_jax.ops.top_k import top_k

    measured = lambda terms, weights, controls: Weighed(0 * weights, 0 * weights, {})
    options = {"weigh": measured, "divergence": Divergence(), "rules": teacher.rules}

    def sums(teacher, student, batch, uniforms):
        theirs, mine = ((m.hidden(Inputs.of(batch))[0], m.output_weight()) for m in (teacher, student))
        against = lambda target: distillation(mine, target, batch["labels"], batch["loss_weights"], {}, **options).terms
        found = {"weight": jnp.sum(batch["loss_weights"]), "whole": against(whole_target(*theirs)).divergence}
        for k, drawn in uniforms.items():
            top = top_k(*theirs, batch["labels"], drawn, k=k, temperature=1.0, rules=teacher.rules)
            kept = TopKTargets(**{name: getattr(top, name) for name in TopKTargets._fields})
            rounded = {name: getattr(kept, name).astype(args.dtype) for name in ("log_probs", "sample_log_probs")}
            for mode in MODES:
                terms = against(sparse_target(kept._replace(**rounded), mode))
                found[f"{k} {mode}"] = terms.divergence
            found |= {f"{k} {name}": value for name, value in terms.extra.items()}
        return found

    run = jax.jit(sums)
    return lambda batch, uniforms: run(teacher, student, batch, uniforms)


def models(args, mesh):
    import jax
    from flax import nnx

    from maverick_jax.model.transformer import Maverick
    from maverick_jax.pretrained import load_pretrained
    from maverick_jax.sharding import ShardingRules

    teacher = load_pretrained(args.teacher, mesh=mesh)
    if args.student is not None:
        return teacher, load_pretrained(args.student, mesh=mesh)
    return teacher, jax.jit(lambda: Maverick(teacher.config, ShardingRules(), rngs=nnx.Rngs(0)))()


def measure(args) -> dict:
    import jax

    from maverick_jax.sharding import single_device_mesh
    from train.batches import Feed
    from train.config_files import read_config

    config = read_config(args.config or str(pathlib.Path(args.teacher) / "config.yaml"))
    with jax.set_mesh(mesh := single_device_mesh()):
        teacher, student = models(args, mesh)
        config = config.model_copy(update={"mesh": type(config.mesh)(data=1)})
        feed, rng = Feed.open(config, "eval"), np.random.default_rng(0)
        batches = min(args.batches, feed.train.num_rows() // config.data.batch_size)
        run, found = program(teacher, student, args), []
        with feed.batches(0, batches) as rows:
            for batch in rows:
                batch = {name: x.reshape(-1, x.shape[-1]) for name, x in batch.items()}
                shape = (*batch["tokens"].shape, args.samples)
                place = lambda x: jax.device_put(x, teacher.rules("batch", "length"))
                uniforms = {k: place(rng.random(shape, np.float32)) for k in args.k}
                found.append(jax.tree.map(float, run(batch, uniforms)))
    about = {"teacher": args.teacher, "student": args.student, "dtype": args.dtype, "samples": args.samples}
    return about | table(found, args, teacher.config.vocab_size)


def table(found: list[dict[str, float]], args, vocab_size: int) -> dict:
    """A line per k from the sums of all batches."""
    sums = {name: np.array([batch[name] for batch in found]) for name in found[0]}
    weight = sums["weight"]
    mean = lambda name: float(sums[name].sum() / weight.sum())
    lines = []
    for k in args.k:
        line = {"k": k, "mass": mean(f"{k} teacher_mass"), "student_mass": mean(f"{k} student_mass")}
        line |= {mode: mean(f"{k} {mode}") for mode in MODES}
        line |= {f"{mode}_bias": line[mode] - mean("whole") for mode in MODES}
        bias = (sums[f"{k} sampled"] - sums["whole"]) / weight
        line["error"] = float(bias.std(ddof=1) / np.sqrt(len(bias))) if len(bias) > 1 else None
        line["bytes_per_token"] = bytes_per_token(k, 0, args.dtype, vocab_size)
        lines.append(line | {"bytes_per_token_sampled": bytes_per_token(k, args.samples, args.dtype, vocab_size)})
    return {"labels": int(weight.sum()), "whole": mean("whole"), "vocab_size": vocab_size, "lines": lines}


def bytes_per_token(k: int, samples: int, dtype: str, vocab_size: int) -> float:
    from data.targets.format import Header

    names = dict.fromkeys(("teacher", "data"), "0" * 64) | {"tokenizer": "", "seed": 0, "temperature": 1.0}
    sizes = {"vocab_size": vocab_size, "top_k": k, "tail_samples": samples, "sequence_length": 2048}
    return Header(dtype=dtype, rows=1, rows_per_part=1, **names, **sizes).bytes_per_token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", metavar="TEACHER")
    parser.add_argument("--student", metavar="PATH")
    parser.add_argument("--config", metavar="CONFIG", help="config of the held-out rows; default: the teacher's")
    parser.add_argument("--batches", type=int, default=16, metavar="N")
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32, 128], metavar="K")
    parser.add_argument("--samples", type=int, default=16, metavar="S")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    args = parser.parse_args()
    found = measure(args)
    if not args.json:
        print(f"whole KL {found['whole']:.5f} nats, {found['labels']:,} labels, V {found['vocab_size']:,}")
        print(f"{'k':>5} {'mass':>8} {'student':>8} {'tail':>9} {'bias':>9} {'renorm.':>9} {'bias':>9} {'sampled':>9} "
              f"{'bias':>9} {'error':>8} {'bytes':>7} {'+samples':>8}")  # fmt: skip
        for line in found["lines"]:
            print(f"{line['k']:>5} {line['mass']:>8.4f} {line['student_mass']:>8.4f} {line['tail']:>9.5f} "
                  f"{line['tail_bias']:>+9.5f} {line['renormalised']:>9.5f} {line['renormalised_bias']:>+9.5f} "
                  f"{line['sampled']:>9.5f} {line['sampled_bias']:>+9.5f} {line['error'] or 0:>8.5f} "
                  f"{line['bytes_per_token']:>7.0f} {line['bytes_per_token_sampled']:>8.0f}")  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
