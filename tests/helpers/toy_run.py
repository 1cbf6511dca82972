"""A toy run for tests that start and kill it: exact integer arithmetic with the real loop, hooks and store.

python tests/helpers/toy_run.py RUN_DIR key=value ...      the same command again resumes
"""

import json
import os
import pathlib
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

DEFAULTS = {
    "stop": 40,
    "every": 4,
    "size": 128,
    "devices": 2,
    "delay": 0.0,
    "hang": 0,  # the step at which process 0 sleeps for ever
    "watchdog": 0.0,
    "budget": 0.0,  # of each phase, in seconds
    "stuck": "",  # the phase that sleeps for ever, after update 6
    "peer_timeout": 60.0,
    "slow": -1,  # the process whose batches take 0.3 s more
    "nan": 0,  # from this step on, updates are not finite
    "copies": "",  # a second place for checkpoints
    "slow_copy": 0.0,  # seconds that each object takes there
}


def batches(start: int, size: int, delay: float, hang: int, slow: int):
    """Yields batches; the batch of update `s + 1` depends only on `s`."""
    import numpy as np

    for s in range(start, 10**9):
        time.sleep(3600 if s + 1 == hang and jax.process_index() == 0 else delay)
        time.sleep(0.3 if jax.process_index() == slow else 0)
        yield np.random.default_rng(s).integers(0, 2**32, (size,), dtype=np.uint32)


def make_step(options):
    import jax.numpy as jnp

    def step(state, batch):
        row = batch[None, :]
        exact = state["exact"] * jnp.uint32(1664525) + (row ^ state["exact"] >> 7)
        noise = (row.astype(jnp.float32) / jnp.float32(2**32)) * jnp.ones_like(state["float"])
        bad = (state["step"] + 1 >= options["nan"]) & (options["nan"] > 0)
        skipped = state["skipped"] + bad.astype(jnp.int32)
        new = {"exact": exact, "float": state["float"] * 0.9 + noise, "step": state["step"] + 1, "skipped": skipped}
        loss = jnp.where(bad, jnp.nan, jnp.mean(new["float"]))
        return new, {"loss": loss, "exact_sum": jnp.sum(exact, dtype=jnp.uint32), "skipped": skipped}

    return jax.jit(step, donate_argnums=0)


def initial(target):
    """Zeros, except `exact`, whose elements all differ, since equal elements would compress to almost nothing."""
    import jax.numpy as jnp

    state = {k: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding.spec) for k, x in target.items()}
    like = target["exact"]
    count = lambda d: jax.lax.broadcasted_iota(jnp.uint32, like.shape, d, out_sharding=like.sharding.spec)
    x = (count(0) * jnp.uint32(like.shape[1]) + count(1)) * jnp.uint32(2654435761)
    return state | {"exact": x ^ x >> 15}


def main(run_dir: str, *overrides: str) -> None:
    from train.faults.processes import initialize_from_environment

    options = DEFAULTS | {k: type(DEFAULTS[k])(v) for k, v in (word.split("=") for word in overrides)}
    jax.config.update("jax_num_cpu_devices", options["devices"])
    initialize_from_environment(peer_timeout=options["peer_timeout"])
    train(pathlib.Path(run_dir), options)


def train(run_dir: pathlib.Path, options: dict) -> None:
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from maverick_jax.checkpoint.checksum import checksums
    from maverick_jax.checkpoint.copies import CopiesConfig
    from maverick_jax.checkpoint.object_store import ObjectStore
    from maverick_jax.checkpoint.store import CheckpointConfig, CheckpointStore
    from maverick_jax.sharding import make_mesh
    from train.faults.hangs import HangsConfig, watched
    from train.faults.non_finite import NonFiniteBudget
    from train.faults.preemption import Preemption
    from train.faults.watchdog import Watchdog
    from train.goodput import timeline
    from train.goodput.pace import Pace
    from train.hooks import Checkpoint, Evaluation, TrainingLines
    from train.loop import fit
    from train.metrics_writer import LoggingConfig, MetricsWriter
    from train.rollouts.source import from_data

    size, stop, config = options["size"], options["stop"], LoggingConfig(every=2)
    mesh = make_mesh({"data": jax.device_count()})
    limits = dict.fromkeys(HangsConfig.model_fields, options["budget"]) | {"start": 0.0, "compile": 0.0}
    hangs = HangsConfig(**limits) if options["budget"] else None
    with jax.set_mesh(mesh), timeline.timed() as clock, watched(hangs, run_dir, clock):
        clock.record_to(run_dir)
        specs = {"exact": P("data"), "float": P(None, "data"), "step": P(), "skipped": P()}
        shape = {"exact": (size, size), "float": (size, size), "step": (), "skipped": ()}
        dtype = {"exact": jnp.uint32, "float": jnp.float32, "step": jnp.int32, "skipped": jnp.int32}
        target = {k: jax.ShapeDtypeStruct(shape[k], dtype[k], sharding=NamedSharding(mesh, specs[k])) for k in specs}
        copies = CopiesConfig(to=options["copies"]) if options["copies"] else None
        write = ObjectStore.write
        ObjectStore.write = lambda *about: time.sleep(options["slow_copy"]) or write(*about)
        config_of_store = CheckpointConfig(every=options["every"], keep=3, copies=copies)
        store = CheckpointStore(run_dir / "checkpoints", config_of_store)
        found = store.restore(target)
        start, state, _ = found or (0, jax.jit(lambda: initial(target))(), {})
        writer = MetricsWriter(run_dir, config, step=start)
        stuck = lambda phase, step: time.sleep(3600 if (phase, step) == (options["stuck"], 6) else 0)
        contents = lambda step, state: stuck("save", step) or (state, {"data": "toy"})
        checkpoint = Checkpoint(store, contents, last_step=stop)
        measure = jax.jit(lambda state: {"eval_loss": jnp.sum(state["exact"] >> 3, dtype=jnp.uint32)})
        evaluate = lambda state: stuck("evaluation", int(state["step"])) or measure(state)
        pace = [Pace(clock, every=config.every)] if options["slow"] >= 0 else []
        beside = [hook.line for hook in pace]
        hooks = [
            *pace,
            *([Watchdog(options["watchdog"], run_dir)] if options["watchdog"] else []),
            TrainingLines(writer, every=config.every, last_step=stop, tokens_per_step=size, beside=beside),
            NonFiniteBudget(3),
            Evaluation(evaluate, writer, every=6, last_step=stop),
            checkpoint,
            Preemption(checkpoint),
        ]
        everywhere = NamedSharding(mesh, P())
        placed = (
            jax.make_array_from_process_local_data(everywhere, batch, (size,))
            for batch in batches(start, size, options["delay"], options["hang"], options["slow"])
        )
        state = fit(make_step(options), state, from_data(placed), start=start, stop=stop, hooks=hooks)
        digest = checksums(state)
    if jax.process_index() == 0:
        result = {"checksums": digest, "resumed_from": start, "sum": int(np.uint32(state["step"]))}
        (run_dir / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    from train.faults.processes import ending, leave

    try:
        main(*sys.argv[1:])
    except Exception as error:
        code, said = ending(error)
        print(f"{type(error).__name__}: {said}", file=sys.stderr)
        leave(1 if code is None else code)
    leave(0)
