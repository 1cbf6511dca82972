"""What it costs to leave out of an export what Llama 4 has no place for: held-out losses with and without it."""

from collections.abc import Collection
from typing import Any

import jax

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.placement import place
from maverick_jax.config import ModelConfig
from maverick_jax.huggingface import extensions
from maverick_jax.model.transformer import Maverick
from maverick_jax.model_source import ModelSource, open_source
from maverick_jax.pretrained import abstract_model
from train.config import RunConfig
from train.config_files import read_config
from train.evaluation.carried import context_of
from train.inherited import argument
from train.run_folder import config_of_run, stage_of
from train.session import Parts, Session


def loss_of_dropping(checkpoint: str, dropped: Collection[str], *, averaged: bool = False) -> dict[str, Any]:
    """Held-out losses of the run that `checkpoint` is of, in nats per label, of the model (`with`) and of the model
    without `dropped` (`without`; `extensions.KEYS`), and the number of `labels`. The rows are the same: without the
    feedback, the places of latents hold a token. `averaged`: as in `open_source`.

    Both models run on one device. Raises InputError for a checkpoint that is of no run, or whose run holds out nothing.
    """
    config = read_config(str(config_of_run(checkpoint)), [*stage_of(checkpoint)], argument("CHECKPOINT", checkpoint))
    source = open_source(checkpoint, averaged=averaged)
    dtype = config.model.param_dtype
    whole = source.config.dropless.model_copy(update={"param_dtype": dtype, "compute_dtype": dtype})
    found = {name: _measured(config, checkpoint, source, model) for name, model in
             (("with", whole), ("without", extensions.without(whole, dropped)))}  # fmt: skip
    losses = {name: measured["eval_loss"] for name, measured in found.items()}
    return losses | {"labels": found["with"]["eval_tokens"]}


def _measured(config: RunConfig, checkpoint: str, source: ModelSource, model: ModelConfig) -> dict[str, Any]:
    config = config.model_copy(update={"model": model})
    session = Session.open(config, Parts(held_out=True, references=True, one_device=True))
    loaded = _loaded(session, source, model)
    with jax.set_mesh(session.mesh):
        context = context_of(config.objective, checkpoint, loaded, session.load_references())
        return session.held_out.measure(config.objective)(loaded, context)


def _loaded(session: Session, source: ModelSource, model: ModelConfig) -> Maverick:
    """The parameters that `model` has of those of the source."""
    leaves, readers = names.flatten(abstract_model(model, session.mesh)), source.readers()
    arrays = {name: place(leaf, readers[name]) for name, leaf in leaves.items()}
    return names.unflatten(abstract_model(model, session.mesh), arrays)


def said(found: dict[str, Any], dropped: Collection[str]) -> str:
    """The losses as a line of text."""
    change = found["without"] - found["with"]
    return (
        f"dropping {' and '.join(dropped)}: held-out loss {found['with']:.4f} with, {found['without']:.4f} without "
        f"({change:+.4f} nats per label, {found['labels']:,} labels)"
    )
