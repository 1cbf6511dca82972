"""Refuses to resume a run if its model, trained parameters, references or data differ from the saved ones."""

from typing import Any

from maverick_jax.checkpoint.adapters import RECORD
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError, NoRestorableCheckpoint
from maverick_jax.network import Purpose
from maverick_jax.settings import strict_yaml
from maverick_jax.settings.redaction import redacted
from train.batches import Feed
from train.config import RunConfig
from train.config_files import public
from train.trainable.lora import LoraConfig

_FREE = ModelConfig.keys_of(Purpose.COMPUTATION, Purpose.TRAINING)
"""Keys of the model that may change when a run is resumed."""


def metadata(config: RunConfig, data_fingerprint: str, references: dict[str, str]) -> dict[str, Any]:
    """Metadata of the run in each of its checkpoints. `references`: fingerprints of the run's frozen models."""
    about = {
        "init_from": config.model.init_from,
        "objective": config.objective.pinned(),
        "trainable": config.trainable.pinned(config.model.network),
    }
    return redacted(about) | {
        "model": config.model.network.model_dump(mode="json"),
        "data": data_fingerprint,
        "run": config.run.name,
        "seed": config.run.seed,
        "optimizer": config.optimizer.model_dump(include={"kind"}),
        RECORD: config.trainable.lora and config.trainable.lora.record(),
        "references": references,
        **({"stage": config.place.name} if config.place.name else {}),
    }


def refuse_other_run(config: RunConfig, here: dict[str, Any], store: CheckpointStore) -> None:
    """Raises InputError, which names the keys, when the run directory holds a run of another model, other data, another
    objective, another choice of what is trained or another teacher than the `metadata` here say."""
    there = _newest_metadata(store)
    if there is None:
        return
    if (first := config.place.first) and there["step"] <= first:  # of a stage before
        config = next(stage for stage in config.in_stages if there["step"] <= stage.run.steps)
        here = metadata(config, Feed.open(config).train.fingerprint, {})
    changed = _differences("model", _network(there["model"]), _network(here["model"]))
    changed += _differences("objective", there.get("objective", {}), here["objective"])
    changed += _differences("optimizer", there.get("optimizer", {}), here["optimizer"])
    changed += _differences("trainable", _trainable(there), _trainable(here))
    paths = {name: reference.path for name, reference in config.objective.references().items()}
    if (stored := config.objective.stored_fields()) is not None:
        paths |= {"targets": stored.path, "teacher": f"who made {stored.path}"}
    for name, fingerprint in there.get("references", {}).items():
        if name in here["references"] and here["references"][name] != fingerprint:
            changed.append(f"objective.{name}: {paths[name]} holds other numbers than what this run has learned from")
    changed += _differences("run", {"seed": there.get("seed", here["seed"])}, here)  # not in early checkpoints
    copied = None if store.copies is None else store.copies.newest_metadata()
    if copied is not None and copied.get("run") != config.run.name:  # its copies are not ours to delete
        changed.append(f"run.name: {copied.get('run')} at checkpoint.copies.to, {config.run.name} here")
    if there["data"] != here["data"]:
        changed += _changed_data(config) or ["data: the contents of its sources or of its tokenizer"]
    if changed:
        raise InputError(
            "\n".join(
                [
                    f"{config.run.directory} holds a run that differs from this config; nothing was changed:",
                    *(f"  {line}" for line in dict.fromkeys(changed)),
                    "go on with the config the run was started with, or give the new run its own run.name (or run.dir)",
                    f"(model.init_from={config.run.directory} lets a new run begin with this run's weights)",
                ]
            )
        )


def _newest_metadata(store: CheckpointStore) -> dict[str, Any] | None:
    """Metadata of the newest checkpoint that has readable metadata. Damaged checkpoints are handled when restoring."""
    for step in reversed(store.known_steps()):
        try:
            return store.meta(step)
        except NoRestorableCheckpoint:
            continue
    return None


def _network(model: dict[str, Any]) -> dict[str, Any]:
    bias = model["balance"]["kind"] == "loss_free_bias"  # it has parameters
    return {key: value for key, value in model.items() if key not in _FREE} | {"balance.kind": bias}


def _trainable(about: dict[str, Any]) -> dict[str, Any]:
    """The pinned keys of `trainable` and their values; adapters have a separate record."""
    if RECORD not in about:
        return about.get("trainable", {})
    lora = about[RECORD] and LoraConfig().record() | about[RECORD]  # earlier versions had fewer keys
    return about.get("trainable", {}) | {"lora": lora}


def _changed_data(config: RunConfig) -> list[str]:
    """A line for each key that differs from the config in the run directory; none if that config cannot be read."""
    try:
        there = strict_yaml.read(config.run.directory / "config.yaml").data
        sections = there["data"], {"seed": there["run"]["seed"]}
    except (InputError, KeyError, TypeError):
        return []
    here = public(config.whole)
    changed = _differences("data", sections[0], here["data"]) + _differences("run", sections[1], here["run"])
    stages = {stage["name"]: stage for stage in there.get("stages") or ()}
    return changed + _differences("stages", stages, {stage["name"]: stage for stage in here["stages"]})


def _differences(prefix: str, there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """A line for each key of `there` with another value in `here`."""
    lines = []
    for key in there:
        name, old, new = f"{prefix}.{key}", there[key], here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(name, old, new)
        elif old != new:
            lines.append(f"{name}: {old} there, {new} here")
    return lines
