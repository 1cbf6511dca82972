"""Held-out loss."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax

from maverick_jax.errors import InputError
from train.batches import Feed
from train.config import RunConfig, check_vocabulary, read_config
from train.state import TrainState
from train.step import eval_step


def make_evaluate(config: RunConfig, held_out: Feed) -> Callable[[TrainState], dict[str, Any]]:
    """`state -> {"eval_loss": nats per label, "eval_tokens": labels}` over the first `run.eval_batches` batches of the
    held-out rows, always the same ones; fewer if there are fewer. Raises InputError where there is not one."""
    batches = _num_batches(config, held_out)
    step = jax.jit(functools.partial(eval_step, objective=config.objective))

    def evaluate(state: TrainState) -> dict[str, Any]:
        return evaluate_model(step, state.model, held_out, batches)

    return evaluate


def _num_batches(config: RunConfig, held_out: Feed) -> int:
    rows = held_out.train.num_rows()
    if rows < config.data.batch_size:
        raise InputError(
            f"data.held_out_fraction: {rows} sequences are held out, less than one batch of {config.data.batch_size}; "
            "raise it, lower data.batch_size, or set run.eval_every: 0"
        )
    return min(config.run.eval_batches, rows // config.data.batch_size)


def evaluate_model(step, model, held_out: Feed, num_batches: int) -> dict[str, Any]:
    """Sums over batches, then one division: the mean over labels, not over batches."""
    totals: dict[str, jax.Array] | None = None
    with held_out.batches(0, num_batches) as batches:
        for batch in batches:
            sums = step(model, batch)
            totals = sums if totals is None else jax.tree.map(jax.numpy.add, totals, sums)
    assert totals is not None
    nll, weight = (float(totals[key]) for key in ("nll", "weight"))
    return {"eval_loss": nll / max(weight, 1e-9), "eval_tokens": int(weight)}


def evaluate(checkpoint: str, path_or_name: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Held-out loss of `checkpoint` (run directory, checkpoint or Hugging Face folder) on the data of a config, on one
    device. Raises InputError when the config's tokenizer has more ids than the model, and when less than a
    batch is held out."""
    from maverick_jax.pretrained import load_pretrained
    from maverick_jax.sharding import single_device_mesh

    config = read_config(path_or_name, overrides)
    mesh = single_device_mesh()
    model = load_pretrained(checkpoint, mesh=mesh, dtype=config.model.param_dtype)
    config = config.model_copy(update={"model": model.config, "mesh": type(config.mesh)(data=1)})
    held_out = Feed.open(config, "eval")
    check_vocabulary(config, held_out.train.tokenizer.vocab_size)
    batches = _num_batches(config, held_out)
    with jax.set_mesh(mesh):
        return evaluate_model(
            jax.jit(functools.partial(eval_step, objective=config.objective)), model, held_out, batches
        )
