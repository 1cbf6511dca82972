"""A job that trains nothing and records what its devices were given: CONFIG OUT START STOP.

Each process appends to OUT/<processes>-<number>.jsonl, for each update, the digest of each row that its devices hold,
read back from the devices. Process 0 leaves in OUT/saved the last update that all have recorded, every third.
"""

import hashlib
import json
import os
import pathlib
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from jax.experimental import multihost_utils

DEVICES = 8


def digest(tokens, labels, weights) -> str:
    parts = (np.asarray(x, dtype) for x, dtype in ((tokens, "<i4"), (labels, "<i4"), (weights, "<f4")))
    return hashlib.sha256(b"".join(x.tobytes() for x in parts)).hexdigest()


def main(config_path: str, out: pathlib.Path, start: int, stop: int) -> None:
    from maverick_jax.files import write_atomically
    from maverick_jax.sharding import make_mesh
    from train.batches import Feed
    from train.config_files import read_config
    from train.faults.processes import initialize_from_environment

    jax.config.update("jax_num_cpu_devices", DEVICES // int(os.environ["MAVERICK_NUM_PROCESSES"]))
    initialize_from_environment(peer_timeout=30.0)
    config = read_config(config_path, [])
    me, count = jax.process_index(), jax.process_count()
    with jax.set_mesh(make_mesh({"data": DEVICES})):
        feed = Feed.open(config)
        with feed.batches(start, stop) as batches, (out / f"{count}-{me}.jsonl").open("a") as file:
            for step, batch in enumerate(batches, start + 1):
                file.write(json.dumps({"step": step, "rows": rows_on_devices(batch, feed.shape)}) + "\n")
                file.flush()
                multihost_utils.sync_global_devices(f"recorded {step}")
                if me == 0 and step % 3 == 0:
                    write_atomically(out / "saved", str(step).encode())
                time.sleep(0.1)


def rows_on_devices(batch, shape) -> list[tuple[int, str]]:
    """(number of the row in the batch, its digest) for each device of this process and each row that it holds."""
    names = ("tokens", "labels", "loss_weights")
    found = []
    for shards in zip(*(batch[name].addressable_shards for name in names), strict=True):
        parts = [np.asarray(shard.data) for shard in shards]
        for a, b in np.ndindex(parts[0].shape[:2]):
            first = [s.start or 0 for s in shards[0].index[:2]]
            number = (first[0] + a) * shape[1] + first[1] + b
            found.append((int(number), digest(*(part[a, b] for part in parts))))
    return found


if __name__ == "__main__":
    from train.faults.processes import exit_code_of, leave

    try:
        main(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        leave(exit_code_of(error) or 1)
    leave(0)
