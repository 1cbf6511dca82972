"""The environment variables that launchers set: flags of XLA, NCCL and libtpu, with reasons, in `environment.yaml`."""

import dataclasses
import functools
from importlib.resources import files

from launch.clusters.rendering import comment, shell
from maverick_jax.settings import strict_yaml


@dataclasses.dataclass(frozen=True)
class EnvironmentFlag:
    """One setting: a whole variable, or one flag of a variable that holds several."""

    variable: str
    value: str
    platform: str
    why: str
    checked: str


@functools.cache
def all_flags() -> tuple[EnvironmentFlag, ...]:
    """Every flag of the file, in its order."""
    text = (files("launch.clusters") / "environment.yaml").read_text("utf-8")
    found = strict_yaml.parse(text, "environment.yaml")
    strict_yaml.raise_problems(found.problems)
    return tuple(EnvironmentFlag(**entry) for entry in found.data["flags"])


def flags_of(platform: str) -> dict[str, list[EnvironmentFlag]]:
    """The flags for a platform (`cpu`, `cuda`, `tpu`), by variable."""
    found: dict[str, list[EnvironmentFlag]] = {}
    for flag in all_flags():
        if flag.platform == platform:
            found.setdefault(flag.variable, []).append(flag)
    return found


def variables(platform: str) -> dict[str, str]:
    """The variables for a platform and their values."""
    return {name: " ".join(flag.value for flag in flags) for name, flags in flags_of(platform).items()}


def reasons(platform: str) -> str:
    """Why each variable is set, as comment lines."""
    lines = []
    for name, flags in flags_of(platform).items():
        for flag in flags:
            setting = flag.value if len(flags) > 1 or flag.value.startswith("--") else f"{name}={flag.value}"
            lines.append(comment(f"{setting}: {flag.why} ({flag.checked})"))
    return "\n".join(lines)


def exports(platform: str) -> str:
    """The variables as lines of a shell script, with reasons. One that is set already keeps its value."""
    if not (found := variables(platform)):
        return ""
    lines = [f'export {name}="${{{name}:-{_inside(value)}}}"' for name, value in found.items()]
    head = "# A variable that is set where the job is submitted keeps that value."
    return "\n".join([head, reasons(platform), *lines, "", ""])


def _inside(value: str) -> str:
    """A value of the file, which may stand between double quotes: `shell` would quote it otherwise."""
    assert shell(value.split()) == value, f"environment.yaml: {value!r} has characters that a shell reads"
    return value
