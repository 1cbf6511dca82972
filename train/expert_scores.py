"""`maverick data experts`: which routed experts a run's data uses, and the fewest of each layer that make up a share of
that use (expert-specialised fine-tuning, ESFT, arXiv 2407.01906)."""

import functools
import json
import logging
import os
import pathlib
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from maverick_jax.errors import InputError
from maverick_jax.initialization.from_model import initial_weights
from maverick_jax.initialization.layer_map import Start, findings
from maverick_jax.model.layers import Taps
from maverick_jax.model.transformer import Maverick
from maverick_jax.precision import for_backend
from maverick_jax.pretrained import abstract_model, open_source
from maverick_jax.settings import strict_yaml
from maverick_jax.sharding import make_mesh
from train.batches import Feed
from train.config import RunConfig, check_against_mesh, check_vocabulary, read_config
from train.faults.processes import initialize_from_environment
from train.objectives.next_token import tapped_states
from train.objectives.pretrain import Pretrain

log = logging.getLogger(__name__)

Score = Literal["gate", "token"]
SHARES: dict[Score, float] = {"gate": 0.1, "token": 0.2}
"""Of each layer's sum of scores, that the chosen experts reach: what the paper and its program use."""
TOKENS = 32 * 4096
"""That are looked at, as in the paper."""


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
    """Scores of every routed expert on the first `tokens` tokens of the config's training rows, and the choice, which
    is written to `out`, a new file (`.json`, else YAML), as `optimizer.experts` reads it.

    checkpoint: the model to look at, of the config's shape; None: what `model.init_from` names.
    Raises InputError for a model without experts or without weights, for a share that is none, and if `out` exists.
    """
    config = read_config(path_or_name, [*overrides, "optimizer.experts=null"])  # the file may be the one to be made
    share = SHARES[score] if share is None else share
    start = _checked(config, checkpoint, share, tokens, out)
    initialize_from_environment()
    # only its rows are wanted, not what an objective reads beside them
    config = config.model_copy(update={"objective": Pretrain()})
    sizes = config.mesh.resolve(jax.device_count())
    check_against_mesh(config, sizes)
    feed = Feed.open(config)
    check_vocabulary(config, feed.train.tokenizer.vocab_size)
    with jax.set_mesh(mesh := make_mesh(sizes)):
        abstract = abstract_model(for_backend(config.model.network), mesh, config.mesh.sharding_rules())
        model = initial_weights(abstract, start, config.run.seed)
        steps = -(-tokens // (config.data.batch_size * config.data.sequence_length))
        used = measure(model, feed, steps)
    found = {
        "model": start.path,
        "score": score,
        "share": share,
        "tokens": used["tokens"],
        "experts": {str(layer): pick(used[score][i], share) for i, layer in enumerate(config.model.moe_layers)},
    }
    if out is not None:
        _write(pathlib.Path(out), found)
    return found | {"scores": {name: used[name].tolist() for name in ("gate", "token")}}


def _checked(config: RunConfig, checkpoint: str | None, share: float, tokens: int, out: str | None) -> Start:
    """Where the model is."""
    if not 0 < share <= 1:
        raise InputError(f"--share: {share}; expected a part of 1, such as 0.1")
    if tokens < 1:
        raise InputError(f"--tokens: {tokens}; expected at least 1")
    if out is not None and pathlib.Path(out).exists():
        raise InputError(f"--out: {out} exists; name a file to make")
    if not config.model.num_moe_layers:
        raise InputError("model: has no mixture of experts to choose from")
    start = config.model.start if checkpoint is None else Start(checkpoint, None, False)
    if start is None:
        raise InputError("data experts: the config names no weights: give --checkpoint, or model.init_from")
    if checkpoint is not None:
        if unfit := findings(config.model.network, open_source(checkpoint).config, start):
            raise InputError("\n".join(f"--checkpoint: {checkpoint}: {key}: {text}" for key, text in unfit))
    return start


# ---- scores ----------------------------------------------------------------------------------------------------------


def measure(model: Maverick, feed: Feed, steps: int) -> dict[str, Any]:
    """Of the batches of `steps`: `tokens`, how many were real, and float64[layers, E]: `token`, the part of a layer's
    assignments that went to an expert (token selection ratio), and `gate`, its part of the layer's gate values, which
    are 0 where it was not chosen (average gate score, normalised, for sigmoid gates do not add up to 1)."""
    program, totals, tokens = jax.jit(_sums), None, 0
    with feed.batches(0, steps) as batches:
        for batch in batches:
            *sums, real = jax.device_get(program(model, batch))
            sums = np.asarray(sums, np.float64)
            totals = sums if totals is None else totals + sums
            tokens += int(real)
    assert totals is not None
    whole = totals.sum(axis=-1, keepdims=True)
    gate, token = totals / np.where(whole == 0, 1, whole)
    return {"gate": gate, "token": token, "tokens": tokens}


def _sums(model: Maverick, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gate values and assignments, float32[layers, E], and the number of real tokens, of arrays [A, b, T]."""
    gates, counts = jax.lax.map(functools.partial(_uses, model), batch)
    return jnp.sum(gates, axis=0), jnp.sum(counts, axis=0), jnp.sum(batch["segment_ids"] > 0, dtype=jnp.int32)


def _uses(model: Maverick, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    layers = model.config.moe_layers
    real = (batch["segment_ids"] > 0)[..., None]
    number = jnp.arange(model.config.num_local_experts, dtype=jnp.int32)[None, None, :]
    found = []
    moe_layers = [model.layer(i) for i in layers]
    for layer, logits in zip(moe_layers, tapped_states(model, batch, Taps(router=layers)).routers, strict=True):
        chosen = [(expert[..., None] == number) & real for expert in layer.moe.choose(logits)]
        assigned = sum(one.astype(jnp.float32) for one in chosen)
        found.append([jnp.sum(x, axis=(0, 1)) for x in (assigned * jax.nn.sigmoid(logits), assigned)])
    gates, counts = zip(*found, strict=True)
    return jnp.stack(gates), jnp.stack(counts)


def pick(parts: np.ndarray, share: float) -> list[int]:
    """The fewest experts, ascending, whose `parts` [E] of the whole, 1, add up to `share`; of equal ones the first."""
    order = np.argsort(-parts, kind="stable")
    reached = np.cumsum(parts[order]) >= share - 1e-9
    return sorted(order[: int(np.argmax(reached)) + 1 if reached.any() else len(order)].tolist())


# ---- what is shown and kept ------------------------------------------------------------------------------------------


def _write(path: pathlib.Path, found: dict[str, Any]) -> None:
    if jax.process_index():
        return
    text = json.dumps(found, indent=2) + "\n" if path.suffix == ".json" else strict_yaml.dump(found)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what `choose_experts` has returned."""
    console = console or Console()
    table = Table(title=f"{found['tokens']:,} tokens; chosen for {found['share']:.0%} of {found['score']} scores")
    for name in ("layer", "chosen", "of", "gate", "token", "experts: gate, token"):
        table.add_column(name, justify="left" if ":" in name else "right")
    for i, (layer, ids) in enumerate(found["experts"].items()):
        gate, token = (np.array(found["scores"][name][i]) for name in ("gate", "token"))
        best = sorted(ids, key=lambda e: -gate[e])
        listed = ", ".join(f"{e}: {gate[e]:.1%}, {token[e]:.1%}" for e in best[:4]) + (", ..." if len(ids) > 4 else "")
        row = (layer, len(ids), len(gate), f"{gate[ids].sum():.1%}", f"{token[ids].sum():.1%}", listed)
        table.add_row(*map(str, row))
    console.print(table)
