"""What a run's directory says about the run: `config.yaml`, `environment.json`, the tokenizer, and the public settings
of the model that it started from."""

import json
import platform
from importlib.metadata import version

import jax

from maverick_jax.accounting.flops import train_flops_per_token
from maverick_jax.files import write_atomically
from maverick_jax.huggingface import carried
from maverick_jax.settings.strict_yaml import dump
from train.config_files import resolved
from train.session import Session

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe(session: Session) -> None:
    """Write the files; process 0 alone does."""
    if jax.process_index():
        return
    config, run_dir, feed = session.config, session.config.run.directory, session.feed
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / "config.yaml", dump(resolved(config)).encode())
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
    if config.model.init_from is not None:
        carried.keep(config.model.init_from, run_dir)
