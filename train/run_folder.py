"""What a run's directory says about the run: `config.yaml`, `environment.json` and the tokenizer."""

import json
import pathlib
import platform
from importlib.metadata import version

import jax

from maverick_jax.accounting.flops import train_flops_per_token
from maverick_jax.errors import InputError
from maverick_jax.files import write_atomically
from maverick_jax.settings.strict_yaml import dump
from train.config_files import resolved
from train.session import Session

CONFIG = "config.yaml"

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe(session: Session) -> None:
    """Write the files; process 0 alone does."""
    if jax.process_index():
        return
    config, run_dir, feed = session.config, session.config.run.directory, session.feed
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / CONFIG, dump(resolved(config)).encode())
    environment = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "mesh": dict(session.mesh.shape),
        "data": feed.train.fingerprint,
        "parameters": config.model.num_parameters(),
        "active_parameters": config.model.num_active_parameters(),
        "train_flops_per_token": train_flops_per_token(config.model, config.data.sequence_length),
    }
    write_atomically(run_dir / "environment.json", json.dumps(environment, indent=2).encode())
    feed.train.tokenizer.save(run_dir)


def config_of_run(checkpoint: str | pathlib.Path) -> pathlib.Path:
    """The config of the run whose directory or checkpoint `checkpoint` is. Raises InputError if there is none."""
    path = pathlib.Path(checkpoint)
    for folder in (path, *list(path.absolute().parents)[:2]):
        if (folder / CONFIG).is_file():
            return folder / CONFIG
    raise InputError(
        f"{checkpoint}: no run's {CONFIG} is there; give a CONFIG: a file, or the name of a shipped config"
    )
