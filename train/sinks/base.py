"""Sinks: copies of a run's metrics in other programs. `metrics.jsonl` stays the record."""

import abc
import dataclasses
import importlib.util
import pathlib
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Field

from maverick_jax.errors import InputError
from maverick_jax.settings.section import Section

ProjectName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:@]+$")]
"""A name in a service, which it logs and stores: no URL."""


@dataclasses.dataclass(frozen=True)
class About:
    """What a sink may tell of a run."""

    run_dir: pathlib.Path
    config: dict[str, Any]
    """The resolved config without secrets."""

    @property
    def name(self) -> str:
        return self.run_dir.resolve().name


class OpenSink(Protocol):
    """A sink that takes metrics."""

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """The numbers of one line of metrics.jsonl. Metrics inside of others are named `outer/inner`."""
        ...

    def close(self) -> None:
        """Finishes what was begun."""
        ...


class SinkConfig(Section, abc.ABC):
    """A copy of a run's metrics. Subclasses have a `kind`, and are registered in `train.sinks.SINKS`."""

    package: ClassVar[str] = ""
    """The package to import; empty: none."""
    extra: ClassVar[str] = ""
    """The extra of this project that installs it; empty: `package` is installed by itself."""

    def check(self, key: str) -> None:
        """Raises InputError, which names the config's `key`, if the package is not installed."""
        if self.package and importlib.util.find_spec(self.package) is None:
            wanted = f"'maverick-jax[{self.extra}]'" if self.extra else self.package
            raise InputError(
                f"{key} is set, but the package {self.package} is not installed: pip install {wanted}, or remove {key}"
            )

    @abc.abstractmethod
    def open(self, about: About) -> OpenSink:
        """Begins to take metrics, on process 0 alone. A resumed run opens its sinks again."""
