"""The frozen models an objective needs beside the one it trains: a teacher, say."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Collection, Mapping

from jax.sharding import Mesh

from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from maverick_jax.precision import for_backend
from maverick_jax.pretrained import CHECKPOINTS, abstract_model, load_into, open_source
from maverick_jax.settings import strict_yaml
from maverick_jax.sharding import ShardingRules
from maverick_jax.text import Tokenizer, find_tokenizer, load_tokenizer, same_tokens
from train.config import RunConfig, check_split
from train.config_files import read_config
from train.objectives.base import Head, Reference

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Found:
    """A reference model on disk; nothing of it is loaded yet."""

    path: str
    config: ModelConfig
    """As it is run: in the dtype asked for, computing as the trained model does."""
    rules: ShardingRules


def find_references(config: RunConfig) -> dict[str, Found]:
    """The models that `config.objective` names, by name. Raises InputError for a path that is no model, for one whose
    vocabulary is another, and for one that the objective cannot use."""
    found = {}
    for name, reference in config.objective.references().items():
        there = _network(reference)
        if there.vocab_size != config.model.vocab_size:
            raise InputError(
                f"objective.{name}: {reference.path} has a vocabulary of {there.vocab_size}; model.vocab_size is "
                f"{config.model.vocab_size}, and both must be of one tokenizer"
            )
        changes = {"compute_dtype": config.model.compute_dtype}
        if reference.dtype != "keep":
            changes["param_dtype"] = reference.dtype
        mesh = config.mesh.model_copy(update={"rules": {**config.mesh.rules, **reference.rules}})
        found[name] = Found(reference.path, there.model_copy(update=changes), mesh.sharding_rules())
    configs = {name: model.config for name, model in found.items()}
    if problems := config.objective.check_references(config.model, configs):
        raise InputError("\n".join(f"{key}: {why}" for key, why in problems))
    return found


def _network(reference: Reference) -> ModelConfig:
    """Of what is there, or of what will be made."""
    making = _making(reference)
    return open_source(reference.path).config if making is None else making.model.network


def missing_references(config: RunConfig) -> dict[str, RunConfig]:
    """The runs that make what `config.objective` names and what is not there yet, or not to its end, by name. What
    somebody else has put there is taken as it is."""
    missing = {}
    for name, reference in config.objective.references().items():
        if (making := _making(reference)) is not None:
            log.info("objective.%s: %s is at step %d of %d: making it first, by %s", name, reference.path,
                     _steps_done(making), making.run.steps, reference.made_by)  # fmt: skip
            missing[name] = making
    return missing


def _making(reference: Reference) -> RunConfig | None:
    """The run that makes it, where it has not come to its end yet; None where there is nothing to make."""
    if reference.made_by is None:
        return None
    run_dir = json.dumps(str(pathlib.Path(reference.path).expanduser()))
    making = read_config(reference.made_by, [f"run.dir={run_dir}"])
    return making if (step := _steps_done(making)) is not None and step < making.run.steps else None


def _steps_done(config: RunConfig) -> int | None:
    """None where something else than a run of this config is."""
    directory = config.run.directory
    empty = directory.is_dir() and not any(path.is_file() for path in directory.rglob("*"))
    if empty or not directory.exists():  # a run that was killed early leaves empty folders
        return 0
    try:
        name = strict_yaml.read(directory / "config.yaml").data["run"]["name"]
    except (InputError, KeyError, TypeError):
        return None
    return (
        max(CheckpointStore(directory / CHECKPOINTS, read_only=True).steps(), default=0)
        if name == config.run.name
        else None
    )


def heads_of(config: RunConfig, found: Mapping[str, Found]) -> tuple[Head, ...]:
    """The parameters that are trained beside the model, the objective's and adapters, given the models that
    `find_references` has found."""
    of_objective = config.objective.heads(config.model, {name: model.config for name, model in found.items()})
    return of_objective + config.trainable.adapters(config.model.network)


def check_references(
    found: Mapping[str, Found], tokenizer: Tokenizer, sizes: dict[str, int], missing: Collection[str] = ()
) -> None:
    """Raises InputError for a model whose tokenizer is another one than the data's, and for one that mesh axes of these
    sizes do not split evenly. `missing`: names of models that are not there yet; their tokenizers are not checked."""
    for name, model in found.items():
        check_split(f"objective.{name}", model.config, model.rules, sizes)
        if name not in missing:
            _check_tokenizer(name, model, tokenizer)


def _check_tokenizer(name: str, model: Found, tokenizer: Tokenizer) -> None:
    if find_tokenizer(pathlib.Path(model.path).expanduser()) is None:
        log.warning("objective.%s: %s has no tokenizer; cannot verify that its token ids match data.tokenizer",
                    name, model.path)  # fmt: skip
    elif not same_tokens(theirs := load_tokenizer(model.path), tokenizer):
        raise InputError(
            f"objective.{name}: {model.path} was trained with another tokenizer ({theirs.name}, "
            f"{theirs.vocab_size} ids) than data.tokenizer ({tokenizer.name}, {tokenizer.vocab_size} ids): its "
            "probabilities are of other tokens"
        )


def fingerprints(found: Mapping[str, Found]) -> dict[str, str]:
    """Of each model's numbers, by name."""
    return {name: open_source(model.path).fingerprint() for name, model in found.items()}


def load_references(found: Mapping[str, Found], mesh: Mesh) -> dict[str, Maverick]:
    """The models, each split over `mesh` by its own rules."""
    loaded = {}
    for name, model in found.items():
        loaded[name] = load_into(abstract_model(for_backend(model.config), mesh, model.rules), model.path)
        log.info("%s: %s, %d parameters, frozen", name, model.path, model.config.num_parameters())
    return loaded
