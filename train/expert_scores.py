"""`maverick data experts`: score the routed experts on a run's data and choose the best (ESFT, arXiv 2407.01906)."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from maverick_jax.errors import InputError
from maverick_jax.files import write_atomically
from maverick_jax.initialization.from_model import initial_weights
from maverick_jax.initialization.layer_map import Start, findings
from maverick_jax.model_source import open_source
from maverick_jax.precision import for_platform
from maverick_jax.pretrained import abstract_model
from maverick_jax.settings import strict_yaml
from train.config import RunConfig
from train.config_files import read_config
from train.inherited import argument
from train.objectives.pretrain import Pretrain
from train.session import Parts, Session
from train.trainable.expert_use import measure, pick

Score = Literal["gate", "token"]
SHARES: dict[Score, float] = {"gate": 0.1, "token": 0.2}
"""Share of each layer's scores that the chosen experts reach: the defaults of the paper and of its program."""
TOKENS = 32 * 4096
"""Number of tokens that are scored, as in the paper."""


def choose_experts(
    path_or_name: str,
    overrides: Iterable[str] = (),
    *,
    checkpoint: str | None = None,
    score: Score = "gate",
    share: float | None = None,
    tokens: int = TOKENS,
    out: str | None = None,
) -> dict[str, Any]:
    """Scores and choice of the routed experts on at least the first `tokens` tokens of the config's training rows. The
    choice is also written to the new file `out` (`.json`: JSON, else YAML) for `trainable.experts`. checkpoint: the
    model to score, of the config's shape; None: `model.init_from`. Raises InputError for a model without experts or
    weights, for a share outside (0, 1], and if `out` exists."""
    given = argument("--checkpoint", checkpoint)
    config = read_config(path_or_name, [*overrides, "trainable.experts=null"], given)  # the file may not exist yet
    share = SHARES[score] if share is None else share
    start = _checked(config, checkpoint, share, tokens, out)
    session = Session.open(config.model_copy(update={"objective": Pretrain()}), Parts(rows=True))  # needs only rows
    with jax.set_mesh(session.mesh):
        abstract = abstract_model(for_platform(config.model.network), session.mesh, config.mesh.sharding_rules())
        steps = -(-tokens // (config.data.batch_size * config.data.sequence_length))
        used = measure(initial_weights(abstract, start, config.run.seed), session.feed, steps)
    found = {
        "model": start.path,
        "score": score,
        "share": share,
        "tokens": used["tokens"],
        "experts": {str(layer): pick(used[score][i], share) for i, layer in enumerate(config.model.moe_layers)},
    }
    if out is not None and jax.process_index() == 0:
        text = json.dumps(found, indent=2) + "\n" if out.endswith(".json") else strict_yaml.dump(found)
        write_atomically(pathlib.Path(out), text.encode())
    return found | {"scores": {name: used[name].tolist() for name in ("gate", "token")}}


def _checked(config: RunConfig, checkpoint: str | None, share: float, tokens: int, out: str | None) -> Start:
    """The source of the model's weights. Raises InputError for invalid options."""
    if not 0 < share <= 1:
        raise InputError(f"--share: {share}; expected more than 0 and at most 1, such as 0.1")
    if tokens < 1:
        raise InputError(f"--tokens: {tokens}; expected at least 1")
    if out is not None and pathlib.Path(out).exists():
        raise InputError(f"--out: {out} exists; name a new file")
    if not config.model.num_moe_layers:
        raise InputError("model: has no layer with routed experts to choose from")
    start = config.start if checkpoint is None else Start(checkpoint, None, False)
    if start is None:
        raise InputError("data experts: the config names no weights; set --checkpoint or model.init_from")
    if checkpoint is not None and (unfit := findings(config.model.network, open_source(checkpoint).config, start)):
        raise InputError("\n".join(f"--checkpoint: {checkpoint}: {key}: {text}" for key, text in unfit))
    return start


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Prints the result of `choose_experts`."""
    table = Table(title=f"{found['tokens']:,} tokens; chosen for {found['share']:.0%} of {found['score']} scores")
    for name in ("layer", "chosen", "of", "gate", "token", "experts: gate, token"):
        table.add_column(name, justify="left" if ":" in name else "right")
    for i, (layer, ids) in enumerate(found["experts"].items()):
        gate, token = (np.array(found["scores"][name][i]) for name in ("gate", "token"))
        best = sorted(ids, key=lambda e: -gate[e])
        listed = ", ".join(f"{e}: {gate[e]:.1%}, {token[e]:.1%}" for e in best[:4]) + (", ..." if len(ids) > 4 else "")
        row = (layer, len(ids), len(gate), f"{gate[ids].sum():.1%}", f"{token[ids].sum():.1%}", listed)
        table.add_row(*map(str, row))
    (console or Console()).print(table)
