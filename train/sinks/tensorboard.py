"""Event files of TensorBoard."""

from typing import ClassVar, Literal

from train.sinks.base import About, OpenSink, SinkConfig


class TensorBoard(SinkConfig):
    """Event files in `tensorboard/` of the run directory (requires the extra `tensorboard`)."""

    package: ClassVar[str] = "tensorboardX"
    extra: ClassVar[str] = "tensorboard"
    kind: Literal["tensorboard"] = "tensorboard"

    def open(self, about: About) -> OpenSink:
        return _Events(about)


class _Events:
    def __init__(self, about: About):
        import tensorboardX

        self._events = tensorboardX.SummaryWriter(str(about.run_dir / "tensorboard"))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            self._events.add_scalar(name, number, step)
        self._events.flush()

    def close(self) -> None:
        self._events.close()
