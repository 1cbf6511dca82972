"""What a run carries beside its model, read from a checkpoint for an evaluation outside the run."""

import dataclasses
import pathlib

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from maverick_jax.checkpoint.names import HEADS, OBJECTIVE
from maverick_jax.checkpoint.placement import place
from maverick_jax.checkpoint.readers import StoredArray
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.huggingface.reader import is_folder
from maverick_jax.model.transformer import Maverick
from maverick_jax.model_source import CHECKPOINTS
from train.objectives.base import Context, Objective


def context_of(objective: Objective, checkpoint: str, model: Maverick, references: dict[str, Maverick]) -> Context:
    """The context in which `model`, loaded from `checkpoint`, is evaluated: with the objective's heads that the
    checkpoint has. Called under the mesh of the evaluation."""
    context = objective.first_context(references)
    return dataclasses.replace(context, heads=heads_in(objective, checkpoint, model))


def heads_in(objective: Objective, checkpoint: str, model: Maverick) -> dict[str, nnx.Param]:
    """The heads that the objective declares for this model without references, as far as the checkpoint has them."""
    declared, found = objective.heads(model.config, {}), {}
    readers = _readers(checkpoint, HEADS) if declared else {}
    for head in declared:
        if (reader := readers.get(head.name)) is None or reader.shape != head.shape:
            continue
        spec = model.rules.storage(*head.axes)
        leaf = jax.ShapeDtypeStruct(
            head.shape, np.dtype(np.float32), sharding=NamedSharding(jax.sharding.get_mesh(), spec)
        )
        found[head.name] = nnx.Param(place(leaf, reader), axes=head.axes)
        reader.require_undamaged()
    return found


def objective_state(checkpoint: str) -> dict[str, float]:
    """The objective's scalars in a checkpoint of a run; empty for a Hugging Face folder, which has none."""
    readers = _readers(checkpoint, OBJECTIVE)
    return {name: float(reader((), np.dtype(np.float32))) for name, reader in readers.items() if reader.shape == ()}


def _readers(checkpoint: str, prefix: str) -> dict[str, StoredArray]:
    """Readers of the arrays of a checkpoint, or of the newest of a run; empty for a Hugging Face folder."""
    path = pathlib.Path(checkpoint).expanduser()
    if is_folder(path):
        return {}
    inside = path.name.isdecimal() and not (path / CHECKPOINTS).is_dir()
    directory, step = (path.parent, int(path.name)) if inside else (path / CHECKPOINTS, None)
    return CheckpointStore(directory, read_only=True).readers(prefix, step)
