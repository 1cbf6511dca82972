"""Held-out loss, and what else can be told of a model on data that it was not trained on."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from maverick_jax.errors import InputError
from maverick_jax.inference.sampler import Sampling, stop_ids
from maverick_jax.model.transformer import Maverick
from maverick_jax.progress import Progress
from maverick_jax.text import Tokenizer, load_tokenizer
from train.batches import Feed
from train.config import RunConfig, check_vocabulary, read_config
from train.evaluation.decisions import Written
from train.evaluation.generated import generated
from train.evaluation.tasks import open_tasks, run_task, table, wrong_answers
from train.objectives import Objective
from train.step import eval_step
from train.teachers.references import check_references, find_references, load_references


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The first `run.eval_batches` batches of the held-out rows, always the same ones; fewer if there are fewer."""

    feed: Feed
    num_batches: int

    @classmethod
    def of(cls, config: RunConfig) -> "HeldOut":
        """Raises InputError where there is not one batch."""
        feed = Feed.open(config, "eval")
        return cls(feed, _num_batches(config, feed))

    def measure(self, objective: Objective, references: dict[str, Maverick]) -> Callable[[Maverick], dict[str, Any]]:
        """`model -> {"eval_loss": nats per label, ..., "eval_tokens": labels}`."""
        step = jax.jit(functools.partial(eval_step, objective=objective))
        written = Written.of(self.feed.train)

        def measured(model: Maverick) -> dict[str, Any]:
            totals: dict[str, jax.Array] | None = None
            with self.feed.batches(0, self.num_batches) as batches:
                for batch in batches:
                    sums = step(model, batch, references)
                    totals = sums if totals is None else jax.tree.map(jax.numpy.add, totals, sums)
            assert totals is not None
            # sums over batches, then one division: the mean over labels, not over batches
            means = {f"eval_{name}": mean for name, mean in objective.means(totals, written).items()}
            return {**means, "eval_tokens": int(totals["weight"])}

        return measured


def _num_batches(config: RunConfig, held_out: Feed) -> int:
    rows = held_out.train.num_rows()
    if rows < config.data.batch_size:
        raise InputError(
            f"data.held_out_fraction: {rows} sequences are held out, less than one batch of {config.data.batch_size}; "
            "raise it, lower data.batch_size, or set run.eval_every: 0"
        )
    return min(config.run.eval_batches, rows // config.data.batch_size)


def evaluate(
    checkpoint: str,
    path_or_name: str,
    overrides: Iterable[str] = (),
    *,
    generate: int = 0,
    max_tokens: int = 256,
    tasks: Sequence[str] = (),
) -> dict[str, Any]:
    """Held-out loss of `checkpoint` (run directory, checkpoint or Hugging Face folder) on the data of a config, and
    what the config's objective measures beside it, on one device; with `generate`, also how the model decides and
    calls where it writes so many turns of held-out trajectories itself, each of at most `max_tokens` (`generated`);
    and its answers to `tasks`, shipped names or files (`tasks`: `evaluation.tasks.run_task` by name).

    Raises InputError when the config's tokenizer has more ids than the model, when less than a batch is held out, and
    when turns are to be written and there are none; and, before a model is loaded, for tasks that cannot be read."""
    from maverick_jax.pretrained import load_pretrained
    from maverick_jax.sharding import single_device_mesh

    config = read_config(path_or_name, overrides)
    if generate and not config.data.has_trajectories:
        raise InputError("--generate writes turns of trajectories, and no source has kind: trajectories")
    opened = open_tasks(tasks, load_tokenizer(config.data.tokenizer)) if tasks else []
    mesh = single_device_mesh()
    model = load_pretrained(checkpoint, mesh=mesh, dtype=config.model.param_dtype)
    config = config.model_copy(update={"model": model.config, "mesh": type(config.mesh)(data=1)})
    held_out = HeldOut.of(config)
    check_vocabulary(config, held_out.feed.train.tokenizer.vocab_size)
    references = find_references(config)
    check_references(references, held_out.feed.train.tokenizer, dict(mesh.shape))
    with jax.set_mesh(mesh):
        found = held_out.measure(config.objective, load_references(references, mesh))(model)
    data = held_out.feed.train
    ask = lambda what: functools.partial(_answers, model, data.tokenizer, what)
    if generate:
        answer = functools.partial(ask("turns"), max_tokens=max_tokens)
        found["generated"] = generated(answer, data, generate, stop_ids(data.tokenizer))
    if tasks:
        found["tasks"] = {task.name: run_task(task, ask(task.name), data.tokenizer) for task in opened}
    return found


def _answers(
    model: Maverick, tokenizer: Tokenizer, what: str, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[list[int]]:
    """What the model writes after each prompt, its likeliest token each time, with a progress bar for `what`."""
    from maverick_jax.inference.answers import answers

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(what, columns, len(prompts)) as progress:
        told = lambda done: progress.update(f"{what}: {done:,} of {len(prompts):,}", done)
        return answers(model, tokenizer, prompts, max_tokens, Sampling(temperature=0.0), told=told)


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what `evaluate` has returned."""
    console = console or Console()
    for name, value in found.items():
        if not isinstance(value, dict):
            console.print(f"{name} {value}", markup=False, highlight=False)
    if "tasks" in found:
        console.print(table(found["tasks"]))
        for line in wrong_answers(found["tasks"]):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if "eval_kind_loss" in found:
        columns = [found["eval_kind_tokens"], found["eval_kind_loss"]]
        console.print(_table("labels by kind", ("kind", "labels", "nats"), columns))
    for title, prefix, part in (("teacher forcing", "eval_", found), ("generation", "", found.get("generated", {}))):
        if f"{prefix}decisions" in part:
            _show_decisions(title, {name.removeprefix(prefix): value for name, value in part.items()}, console)


def _show_decisions(how: str, found: dict[str, Any], console: Console) -> None:
    ratios = ("precision", "recall", "f1")
    columns = [found["decisions"], *(found[f"decision_{name}"] for name in ratios)]
    console.print(_table(f"decisions by {how}", ("class", "turns", *ratios), columns))
    said = [f"{name.replace('_', ' ')} {rate:.1%}" for name, rate in found["call_rates"].items()]
    said += [f"{found[name]:,} {name.replace('_', ' ')}" for name in ("turns", "turns_too_long") if name in found]
    console.print(", ".join(said), markup=False, highlight=False, soft_wrap=True)


def _table(title: str, header: Sequence[str], columns: Sequence[dict[str, float]]) -> Table:
    """Values by name, those of the first column there for every row."""
    table = Table(title=title)
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right")
    shown = lambda value: "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    for name in columns[0]:
        table.add_row(name, *(shown(column.get(name)) for column in columns))
    return table
