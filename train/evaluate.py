"""Held-out loss."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax

from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from train.batches import Feed
from train.config import RunConfig, check_vocabulary, read_config
from train.decisions import Written
from train.objectives import Objective
from train.references import check_references, find_references, load_references
from train.step import eval_step


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The first `run.eval_batches` batches of the held-out rows, always the same ones; fewer if there are fewer."""

    feed: Feed
    num_batches: int

    @classmethod
    def of(cls, config: RunConfig) -> "HeldOut":
        """Raises InputError where there is not one batch."""
        feed = Feed.open(config, "eval")
        return cls(feed, _num_batches(config, feed))

    def measure(self, objective: Objective, references: dict[str, Maverick]) -> Callable[[Maverick], dict[str, Any]]:
        """`model -> {"eval_loss": nats per label, ..., "eval_tokens": labels}`."""
        step = jax.jit(functools.partial(eval_step, objective=objective))
        written = Written.of(self.feed.train)

        def measured(model: Maverick) -> dict[str, Any]:
            totals: dict[str, jax.Array] | None = None
            with self.feed.batches(0, self.num_batches) as batches:
                for batch in batches:
                    sums = step(model, batch, references)
                    totals = sums if totals is None else jax.tree.map(jax.numpy.add, totals, sums)
            assert totals is not None
            # sums over batches, then one division: the mean over labels, not over batches
            means = {f"eval_{name}": mean for name, mean in objective.means(totals, written).items()}
            return {**means, "eval_tokens": int(totals["weight"])}

        return measured


def _num_batches(config: RunConfig, held_out: Feed) -> int:
    rows = held_out.train.num_rows()
    if rows < config.data.batch_size:
        raise InputError(
            f"data.held_out_fraction: {rows} sequences are held out, less than one batch of {config.data.batch_size}; "
            "raise it, lower data.batch_size, or set run.eval_every: 0"
        )
    return min(config.run.eval_batches, rows // config.data.batch_size)


def evaluate(checkpoint: str, path_or_name: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Held-out loss of `checkpoint` (run directory, checkpoint or Hugging Face folder) on the data of a config, and
    what the config's objective measures beside it, on one device. Raises InputError when the config's tokenizer has
    more ids than the model, and when less than a batch is held out."""
    from maverick_jax.pretrained import load_pretrained
    from maverick_jax.sharding import single_device_mesh

    config = read_config(path_or_name, overrides)
    mesh = single_device_mesh()
    model = load_pretrained(checkpoint, mesh=mesh, dtype=config.model.param_dtype)
    config = config.model_copy(update={"model": model.config, "mesh": type(config.mesh)(data=1)})
    held_out = HeldOut.of(config)
    check_vocabulary(config, held_out.feed.train.tokenizer.vocab_size)
    references = find_references(config)
    check_references(references, held_out.feed.train.tokenizer, dict(mesh.shape))
    with jax.set_mesh(mesh):
        return held_out.measure(config.objective, load_references(references, mesh))(model)
