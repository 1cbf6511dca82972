"""Weights & Biases, online or into files that `wandb sync` sends later."""

import os
from typing import ClassVar, Literal

from train.sinks.base import About, OpenSink, ProjectName, SinkConfig


class WeightsAndBiases(SinkConfig):
    """A project of Weights & Biases (requires the extra `wandb`). Its key is in the environment (`WANDB_API_KEY`) or in
    its own file, never in a config."""

    package: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "wandb"
    kind: Literal["wandb"] = "wandb"
    project: ProjectName
    """The project that the run belongs to."""
    entity: ProjectName | None = None
    """The user or team that the project belongs to. null: that of the key."""
    mode: Literal["online", "offline", "disabled"] | None = None
    """`offline` writes to `wandb/` of the run directory, for `wandb sync`. null: what the environment variable
    `WANDB_MODE` says, else online."""

    def open(self, about: About) -> OpenSink:
        return _WandbRun(self, about)


class _WandbRun:
    def __init__(self, config: WeightsAndBiases, about: About):
        import wandb

        # its metadata has the command line, and its console log the terminal: both may hold what was typed
        settings = wandb.Settings(console="off", disable_git=True, x_disable_meta=True, silent=True)
        offline = (config.mode or os.environ.get("WANDB_MODE")) == "offline"
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            name=about.name,
            id=about.name,
            resume=None if offline else "allow",  # files cannot be resumed: each start has its own
            dir=str(about.run_dir),
            config=about.config,
            settings=settings,
        )

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()
