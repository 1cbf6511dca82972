"""The train step of a config, compiled for devices that need not be at hand. It follows from the config alone: no data,
weights or checkpoints are opened."""

import dataclasses
import time

import jax
from jax.sharding import Mesh

from maverick_jax.precision import for_platform
from maverick_jax.pretrained import abstract_model
from maverick_jax.target import Target
from train.batches import abstract_batch
from train.config import RunConfig
from train.reasoning import with_marks
from train.restore import StateParts
from train.session import mesh_on
from train.state import abstract_state
from train.step import lower_step
from train.teachers.references import find_references


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled step."""

    compiled: jax.stages.Compiled
    seconds: dict[str, float]
    """Wall-clock time by stage: `lower`, `compile`."""


@dataclasses.dataclass(frozen=True)
class Ahead:
    """A step that is lowered and not yet compiled."""

    lowered: jax.stages.Lowered
    mesh: Mesh
    seconds: float
    """Wall-clock time of tracing and lowering."""

    def compile(self) -> CompiledStep:
        begun = time.monotonic()
        with jax.set_mesh(self.mesh):
            compiled = self.lowered.compile()
        return CompiledStep(compiled, {"lower": self.seconds, "compile": time.monotonic() - begun})


def lower_ahead(config: RunConfig, target: Target) -> Ahead:
    """The step of `config` for `target`. Raises InputError if the mesh does not fit the devices."""
    mesh, references, begun = mesh_on(config, target), find_references(config), time.monotonic()
    with jax.set_mesh(mesh):
        parts = StateParts.of(config, references)
        state = abstract_state(mesh, **parts.arguments())
        frozen = {
            name: abstract_model(for_platform(found.config), mesh, found.rules) for name, found in references.items()
        }
        models = [config.model, *(found.config for found in references.values())]
        fields = with_marks(models, config.objective.fields())
        batch = abstract_batch(config, mesh, fields, config.data.tiles_per_row)
        _, lowered = lower_step(state, batch, config.objective, parts.optimizer, frozen)
    return Ahead(lowered, mesh, time.monotonic() - begun)
