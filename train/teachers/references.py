"""References: frozen models, such as a teacher, that an objective needs in addition to the trained model."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Collection, Mapping

from jax.sharding import Mesh

from maverick_jax.checkpoint.lease import FILE
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from maverick_jax.model_source import CHECKPOINTS, open_source
from maverick_jax.precision import for_platform
from maverick_jax.pretrained import abstract_model, load_into
from maverick_jax.settings import strict_yaml
from maverick_jax.sharding import ShardingRules, size_of
from maverick_jax.text import Tokenizer, find_tokenizer, load_tokenizer, same_tokens
from train.config import RunConfig, check_split
from train.config_files import read_config
from train.objectives.base import Head, Reference
from train.reasoning import unmarked

log = logging.getLogger(__name__)

START = "model.init_from"


@dataclasses.dataclass(frozen=True)
class Found:
    """A reference on disk, before it is loaded."""

    path: str
    config: ModelConfig
    """Its config, with the reference's dtype and the compute dtype of the trained model."""
    rules: ShardingRules


def find_references(config: RunConfig) -> dict[str, Found]:
    """The references of `config.objective` by name. Raises InputError for a path that is not a model, for a model with
    another vocabulary size, and for a model that the objective cannot use."""
    found = {}
    for name, reference in config.objective.references().items():
        there = _network(reference)
        if there.vocab_size != config.model.vocab_size:
            raise InputError(
                f"objective.{name}: {reference.path} has a vocabulary of {there.vocab_size}; model.vocab_size is "
                f"{config.model.vocab_size}; both models must use the same tokenizer"
            )
        if problem := _unlike_pictures(config, there):
            raise InputError(f"objective.{name}: {reference.path} {problem}")
        if problems := unmarked(there, config.data, config.objective):
            raise InputError(f"objective.{name}: {reference.path} has reasoning heads, but {problems[0]}")
        changes = {"compute_dtype": config.model.compute_dtype}
        if reference.dtype != "keep":
            changes["param_dtype"] = reference.dtype
        mesh = config.mesh.model_copy(update={"rules": {**config.mesh.rules, **reference.rules}})
        found[name] = Found(reference.path, there.dropless.model_copy(update=changes), mesh.sharding_rules())
    configs = {name: model.config for name, model in found.items()}
    if problems := config.objective.check_references(config.model, configs):
        raise InputError("\n".join(f"{key}: {why}" for key, why in problems))
    return found


def readers_of_rows(config: RunConfig) -> dict[str, ModelConfig]:
    """The models that read the rows of a run, by their keys in its config: the trained one and the references."""
    references = config.objective.references().items()
    return {"model": config.model} | {f"objective.{name}": _network(reference) for name, reference in references}


def _unlike_pictures(config: RunConfig, there: ModelConfig) -> str | None:
    """Why a reference cannot see the data's pictures as the trained model does; None: it can, or there are none."""
    own, theirs = config.model.vision, there.vision
    if not config.data.tiles_per_row or own is None:
        return None
    if theirs is None:
        return "has no image encoder, and rows of data hold pictures; expected one"
    for key in ("image_size", "num_channels", "tokens_per_tile", "image_token_index"):
        if (a := getattr(theirs, key)) != (b := getattr(own, key)):
            return f"reads pictures otherwise: its vision.{key} is {a}; expected {b}, as of model.vision"
    return None


def _network(reference: Reference) -> ModelConfig:
    """The config of the reference on disk, or of the run that will train it."""
    making = _making(reference)
    return open_source(reference.path).config if making is None else making.model.network


def missing_references(config: RunConfig) -> dict[str, RunConfig]:
    """The runs that must first train a reference of `config.objective`, by its name, or the model at `model.init_from`,
    by this key: those that are missing or unfinished. A model at such a path that did not come from such a run is used
    as it is."""
    missing, model = {}, config.model
    wanted = {name: (f"objective.{name}", reference) for name, reference in config.objective.references().items()}
    if model.init_from is not None and model.init_config is not None:
        wanted[START] = START, Reference(model.init_from, made_by=model.init_config)
    for name, (key, reference) in wanted.items():
        if (making := _making(reference)) is not None:
            log.info("%s: %s is at step %d of %d; training it first, with %s", key, reference.path,
                     _steps_done(making), making.run.steps, reference.made_by)  # fmt: skip
            missing[name] = making
    return missing


def _making(reference: Reference) -> RunConfig | None:
    """The run that trains the reference, if it is missing or unfinished; else None."""
    if reference.made_by is None:
        return None
    run_dir = json.dumps(str(pathlib.Path(reference.path).expanduser()))
    making = read_config(reference.made_by, [f"run.dir={run_dir}"])
    return making if (step := _steps_done(making)) is not None and step < making.run.steps else None


def _steps_done(config: RunConfig) -> int | None:
    """Number of steps that the run in this directory has saved; None if the directory contains something else."""
    directory = config.run.directory
    empty = directory.is_dir() and not any(path.is_file() and path.name != FILE for path in directory.rglob("*"))
    if empty or not directory.exists():  # a run that was killed early leaves empty folders and its lease
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
    """The heads of a run: the objective's heads and the adapters, given the references from `find_references`."""
    of_objective = config.objective.heads(config.model, {name: model.config for name, model in found.items()})
    return of_objective + config.trainable.adapters(config.model.network)


def check_references(
    found: Mapping[str, Found], tokenizer: Tokenizer, sizes: dict[str, int], missing: Collection[str] = ()
) -> None:
    """Raises InputError for a reference whose tokenizer differs from the data's, and for one that mesh axes of these
    sizes do not divide evenly. `missing`: names of references that do not exist yet; their tokenizers are not
    checked."""
    for name, model in found.items():
        check_split(f"objective.{name}", model.config, model.rules, sizes)
        if name not in missing:
            _check_tokenizer(name, model, tokenizer)


def check_shared_rows(config: RunConfig, found: Mapping[str, Found], sizes: dict[str, int]) -> None:
    """Raises InputError for a reference that cannot read rows which devices share: its attention chunks must lie where
    the trained model's do, and its rules divide rows as the run's do."""
    rules, chunk = config.mesh.sharding_rules(), config.model.attention_chunk_size
    if size_of(sizes, rules.length) == 1:
        return
    for name, model in found.items():
        if (model.rules.batch, model.rules.length) != (rules.batch, rules.length):
            raise InputError(f"objective.{name}: its rules for batch and length differ from mesh.rules; expected none")
        own = model.config.attention_chunk_size
        if own is not None and (chunk is None or chunk % own):
            raise InputError(
                f"objective.{name}: its attention chunks of {own} tokens do not divide those of model."
                f"attention_chunk_size ({chunk}); expected mesh.context=1"
            )


def _check_tokenizer(name: str, model: Found, tokenizer: Tokenizer) -> None:
    if find_tokenizer(pathlib.Path(model.path).expanduser()) is None:
        log.warning("objective.%s: %s has no tokenizer; cannot verify that its token ids match data.tokenizer",
                    name, model.path)  # fmt: skip
    elif not same_tokens(theirs := load_tokenizer(model.path), tokenizer):
        raise InputError(
            f"objective.{name}: {model.path} was trained with another tokenizer ({theirs.name}, "
            f"{theirs.vocab_size} ids) than data.tokenizer ({tokenizer.name}, {tokenizer.vocab_size} ids): its "
            "token ids mean different tokens (data.tokenizer=null takes the teacher's)"
        )


def fingerprints(found: Mapping[str, Found]) -> dict[str, str]:
    """Fingerprint of each reference's weights, by name."""
    return {name: open_source(model.path).fingerprint() for name, model in found.items()}


def load_references(found: Mapping[str, Found], mesh: Mesh) -> dict[str, Maverick]:
    """The loaded references, each sharded over `mesh` by its own rules."""
    loaded = {}
    for name, model in found.items():
        loaded[name] = load_into(abstract_model(for_platform(model.config), mesh, model.rules), model.path)
        log.info("%s: %s, %d parameters, frozen", name, model.path, model.config.num_parameters())
    return loaded
