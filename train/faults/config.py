"""The section `guard` of a config: what a run does about bad updates."""

from typing import Annotated

from pydantic import Field

from maverick_jax.settings.section import Section
from train.faults.hangs import HangsConfig
from train.faults.rollback import RollbackConfig
from train.faults.spikes import SpikesConfig


class GuardConfig(Section):
    """What a run does about bad updates. Updates that are not finite are always refused; see `run.skip_budget`."""

    spikes: SpikesConfig | None = None
    """Refuses updates whose loss or gradient norm is far above those before; `{}` takes the defaults. null: none."""
    rollback: RollbackConfig | None = None
    """Goes back to the last good checkpoint after several refused updates in a row, and leaves out their data; `{}`
    takes the defaults. null: never."""
    compare_every: Annotated[int, Field(ge=0)] = 0
    """Steps between two comparisons of the parameters of devices that should hold the same ones; before every save
    there is one too. 0: none."""
    hangs: HangsConfig | None = None
    """Ends a process that stays in one phase for too long (exit code 77); `{}` takes the defaults. null: never."""
    stop_within: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that the run has to save and end after it was asked to stop (SIGTERM, Ctrl-C). Past them the process ends
    without saving (exit code 75), and the newest complete checkpoint stands. 0: no limit but the scheduler's."""
