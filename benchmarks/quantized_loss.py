#!/usr/bin/env python
"""Measure the cost of int8 and int4: held-out loss of a trained model in float32, in bfloat16, and quantized.

    maverick train pretrain_tiny
    python benchmarks/quantized_loss.py runs/pretrain_tiny [--config pretrain_tiny]

Every variant is exported as by `maverick export` and loaded from its files; quantized weights are first dequantized in
the dtype of the export. The output is a table and, in its last line, one JSON object. `bits`: bytes of the folder's
tensors, times 8, over the number of parameters. `nats_lost`: loss minus that of the float32 export.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import safetensors.numpy

EXPORTS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {},
    "int8, groups of 128": {"quantize": "int8", "group_size": 128},
    "int8, groups of 32": {"quantize": "int8", "group_size": 32},
    "int4, groups of 128": {"quantize": "int4", "group_size": 128},
    "int4, groups of 32": {"quantize": "int4", "group_size": 32},
}


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in safetensors.numpy.load_file(path).items()}


def write_dequantized(quantized: pathlib.Path, plain: pathlib.Path, bits: int, out: pathlib.Path) -> None:
    """Write a plain float32 folder with the dequantized weights of `quantized`. `plain`: the same model in bfloat16."""
    import jax.numpy as jnp

    from maverick_jax.checkpoint import names
    from maverick_jax.huggingface.names import table
    from maverick_jax.huggingface.quantize import dequantize, quantized_views, unpack
    from maverick_jax.pretrained import load_pretrained, save_pretrained
    from maverick_jax.text import load_tokenizer

    model, tensors = load_pretrained(plain), tensors_of(quantized)
    parameters = {name: np.array(array) for name, array in names.flatten(model).items()}
    for entry in table({name: p.shape for name, p in parameters.items()}):
        for view in quantized_views(entry, parameters[entry.ours].shape):
            values = unpack(tensors[f"{view.name}_packed"], bits)
            index = tuple(slice(None) if at is None else at for at in view.fixed)
            parameters[entry.ours][index] = dequantize(values, tensors[f"{view.name}_scale"]).astype(np.float32).T
    made = names.unflatten(model, {name: jnp.asarray(p) for name, p in parameters.items()})
    save_pretrained(made, out, "float32", load_tokenizer(plain))


def measure(run: str, config: str, scratch: pathlib.Path) -> dict[str, dict[str, float]]:
    from maverick_jax.huggingface.quantize import BITS
    from maverick_jax.pretrained import export
    from train.evaluate import evaluate

    found: dict[str, dict[str, float]] = {}
    for name, options in EXPORTS.items():
        folder = scratch / name.replace(" ", "_")
        export(run, folder, **options)
        size = sum(tensor.nbytes for tensor in tensors_of(folder).values())
        if quantize := options.get("quantize"):
            write_dequantized(folder, scratch / "bfloat16", BITS[quantize], scratch / f"{folder.name}_dequantized")
            folder = scratch / f"{folder.name}_dequantized"
        loss = evaluate(str(folder), config)["eval_loss"]
        first = found.setdefault(name, {"loss": loss, "bytes": size}) and found["float32"]
        found[name] |= {"nats_lost": loss - first["loss"], "bits": 32 * size / first["bytes"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--config", default="pretrain_tiny", help="config of the held-out data, all of which is used")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(args.run, args.config, pathlib.Path(scratch))
    print("| | bits per parameter | held-out nats | lost |\n| --- | --- | --- | --- |")
    for name, row in found.items():
        print(f"| {name} | {row['bits']:.1f} | {row['loss']:.5f} | {row['nats_lost']:+.5f} |")
    print(json.dumps({"benchmark": "quantized_loss", "run": args.run, "exports": found}))


if __name__ == "__main__":
    main()
