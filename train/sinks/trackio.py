"""trackio: a dashboard on this machine."""

from typing import ClassVar, Literal

from train.sinks.base import About, OpenSink, ProjectName, SinkConfig


class Trackio(SinkConfig):
    """A project of trackio, on this machine (requires the extra `trackio`; `trackio show` opens it)."""

    package: ClassVar[str] = "trackio"
    extra: ClassVar[str] = "trackio"
    kind: Literal["trackio"] = "trackio"
    project: ProjectName
    """The project that the run belongs to."""

    def open(self, about: About) -> OpenSink:
        return _TrackioRun(self, about)


class _TrackioRun:
    def __init__(self, config: Trackio, about: About):
        import trackio

        self._run = trackio.init(
            project=config.project, name=about.name, resume="allow", config=about.config, embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()
