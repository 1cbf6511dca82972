"""The table of model sizes in README.md, generated from the shipped configs.

`python -m tests.helpers.size_table` updates it.
"""

import functools
import pathlib
import re
from collections.abc import Iterator

from launch.plan import plan
from maverick_jax.config import ModelConfig
from maverick_jax.network import Purpose
from maverick_jax.settings import shipped
from train.config import RunConfig
from train.config_files import read_run

DOCUMENT = pathlib.Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- sizes -->\n", "<!-- end of sizes -->\n"


@functools.cache
def table() -> str:
    """The table in Markdown, largest model first."""
    models = sorted(
        ((name, ModelConfig.from_name(name)) for name in shipped.model_names()), key=lambda m: -m[1].num_parameters()
    )
    runs = list(_cluster_runs())
    lines = ["| name | parameters | active per token | vocabulary | fits | |", "|---|---|---|---|---|---|"]
    for name, model in models:
        sizes = [_short(n) for n in (model.num_parameters(), model.num_active_parameters())]
        cells = [f"`{name}`", *sizes, f"{model.vocab_size:,}", _smallest_mesh(model, runs), _described(name)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cluster_runs() -> Iterator[RunConfig]:
    """The shipped runs for other hardware than this machine's, without those that train adapters alone."""
    for name in shipped.run_names():
        config = read_run(name)
        if config.run.hardware is not None and config.trainable.lora is None:
            yield config


def _smallest_mesh(model: ModelConfig, runs: list[RunConfig]) -> str:
    network = lambda config: {key: getattr(config, key) for key in ModelConfig.keys_of(Purpose.NETWORK)}
    plans = [plan(run) for run in runs if network(run.model) == network(model)]
    found = min((p for p in plans if p["fits"]), key=lambda p: p["devices"], default=None)
    if found is None:
        return ""
    gigabytes = found["bytes_per_device"]["total"] / 1e9
    return f"{found['devices']} x {found['hardware']['name']}, {gigabytes:.0f} GB each"


def _short(n: int) -> str:
    millions = n < 1e9
    number = n / (1e6 if millions else 1e9)
    digits = 0 if number >= 1000 or (millions and number >= 10) else 1
    return f"{number:,.{digits}f}{'M' if millions else 'B'}"


def _described(name: str) -> str:
    """What the model's file says of it first."""
    comment = shipped.model_path(name).read_text().splitlines()[1]
    return re.split(r"[:.](?=\s|$)", comment.removeprefix("# "))[0]


def written(document: str) -> str:
    """The document with the current table."""
    before, rest = document.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
