"""The frozen models an objective needs beside the one it trains: a teacher, say."""

import logging

from jax.sharding import Mesh

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from maverick_jax.precision import for_backend
from maverick_jax.pretrained import abstract_model, load_into, open_source
from train.config import RunConfig

log = logging.getLogger(__name__)


def load_references(config: RunConfig, mesh: Mesh) -> dict[str, Maverick]:
    """The models that `config.objective` names, split over `mesh` by the run's own rules, in the dtype they are stored
    in. Raises InputError for a path that is no model and for one whose vocabulary is another."""
    found = {}
    for name, network in reference_models(config).items():
        path = config.objective.references()[name]
        abstract = abstract_model(for_backend(network), mesh, config.mesh.sharding_rules())
        found[name] = load_into(abstract, path)
        log.info("%s: %s, %d parameters, frozen", name, path, network.num_parameters())
    return found


def reference_models(config: RunConfig) -> dict[str, ModelConfig]:
    """What those models are, by name; nothing is loaded. Raises InputError as `load_references` does."""
    found = {}
    for name, path in config.objective.references().items():
        there = open_source(path).config
        if there.vocab_size != config.model.vocab_size:
            raise InputError(
                f"objective.{name}: {path} has a vocabulary of {there.vocab_size}; model.vocab_size is "
                f"{config.model.vocab_size}, and both must be of one tokenizer"
            )
        found[name] = there.model_copy(update={"compute_dtype": config.model.compute_dtype})
    return found
