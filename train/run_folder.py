"""What a run's directory says about the run: `config.yaml`, `environment.json`, the tokenizer, and the public settings
of the model that it started from."""

import json
import pathlib
import platform
from importlib.metadata import version

import jax

from maverick_jax import events
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import InputError
from maverick_jax.files import write_atomically
from maverick_jax.huggingface import carried
from maverick_jax.model_source import open_source
from maverick_jax.settings import strict_yaml
from maverick_jax.settings.redaction import redacted
from maverick_jax.settings.strict_yaml import dump
from train import announce
from train.config import RunConfig
from train.config_files import STAGE, public
from train.faults.processes import resumes_from
from train.goodput import timeline
from train.session import Session
from train.starts import kept_starts, recorded_starts, start_record

CONFIG = "config.yaml"

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def begins(config: RunConfig, store: CheckpointStore) -> None:
    """Says that the job works on this run: messages about dead processes name its checkpoints, and its wall time is
    recorded, unless the run is complete."""
    resumes_from(store.directory)
    events.record_to(config.run.directory)
    if max(store.steps(), default=0) < config.run.steps:
        timeline.current().record_to(config.run.directory)


def describe(session: Session, step: int, flops_per_token: float) -> None:
    """Write the files, without secrets; process 0 alone does. `step` is where this start resumes; 0: a new run."""
    if jax.process_index():
        return
    config, run_dir, feed = session.config, session.config.run.directory, session.feed
    run_dir.mkdir(parents=True, exist_ok=True)
    changed = announce.changes(config, left_out=()) if step else {}
    write_atomically(run_dir / CONFIG, dump(public(config.whole)).encode())
    path = run_dir / "environment.json"
    environment = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "devices": sorted({device.device_kind for device in session.target.devices}),
        "device_count": session.target.count,
        "process_count": jax.process_count(),
        "mesh": dict(session.mesh.shape),
        "data": feed.train.fingerprint,
        "parameters": config.model.num_parameters(),
        "active_parameters": config.model.num_active_parameters(),
        "references": {
            name: {
                "path": found.path,
                "parameters": found.config.num_parameters(),
                "active_parameters": found.config.num_active_parameters(),
            }
            for name, found in session.references.items()
        },
        "train_flops_per_token": flops_per_token,
        "starts": kept_starts(recorded_starts(path) if step else [], start_record(step, changed)),
    }
    write_atomically(path, json.dumps(redacted(environment), indent=2).encode())
    feed.train.tokenizer.save(run_dir)
    if config.model.init_from is not None:
        carried.keep(config.model.init_from, run_dir)


def config_of_run(checkpoint: str | pathlib.Path) -> pathlib.Path:
    """The config of the run whose directory or checkpoint `checkpoint` is. Raises InputError if there is none, and if
    it names plugins: they are code, and only a config that the user gives can have code imported."""
    path = pathlib.Path(checkpoint)
    for folder in (path, *list(path.absolute().parents)[:2]):
        if (folder / CONFIG).is_file():
            _require_no_plugins(checkpoint, folder / CONFIG)
            return folder / CONFIG
    raise InputError(
        f"{checkpoint}: no run's {CONFIG} is there; give a CONFIG: a file, or the name of a shipped config"
    )


def stage_of(checkpoint: str | pathlib.Path) -> list[str]:
    """The words of a command line that name the stage of a checkpoint, or of a run's newest; none if it has no
    stages."""
    name = open_source(checkpoint).meta.get("stage")
    return [f"{STAGE}={name}"] if isinstance(name, str) else []


def _require_no_plugins(checkpoint: str | pathlib.Path, path: pathlib.Path) -> None:
    found = strict_yaml.read(path)
    if isinstance(found.data, dict) and (named := found.data.get("plugins")):
        raise InputError(
            f"{found.place('plugins')}: plugins: {named!r} are not imported from a run's folder; give the config too, "
            f"if you trust it: maverick eval {checkpoint} {path}"
        )
