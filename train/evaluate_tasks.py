"""`maverick eval --tasks` and `--harness`: what a model answers, without the data of any run. It opens no job."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from maverick_jax.inference.engine import EngineSettings, SlotEngine
from maverick_jax.inference.engine.forward import Unrolled
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import config_of, load_layers
from maverick_jax.progress import ProgressDisplay
from maverick_jax.text import Tokenizer, load_tokenizer
from train.compilation import use_compilation_cache
from train.evaluation.harness.run import DEFAULT as DEFAULT_HARNESS
from train.evaluation.harness.run import HarnessSettings, require, run_harness
from train.evaluation.tasks import OpenTask, context_of, open_tasks, run_task


def evaluate_tasks(
    checkpoint: str, tasks: Sequence[str], *, allow_code: bool = False, dtype: str = "float32"
) -> dict[str, Any]:
    """The model's results on tasks, by name (`evaluation.tasks.run_task`), on one device. Raises InputError for
    unreadable tasks before a model is loaded."""
    tokenizer = load_tokenizer(checkpoint)
    opened = open_tasks(tasks, tokenizer, allow_code, config_of(checkpoint).vision)
    use_compilation_cache()
    return run_tasks(opened, load_layers(checkpoint, dtype=dtype), tokenizer)


def evaluate_harness(
    checkpoint: str, tasks: Sequence[str], settings: HarnessSettings = DEFAULT_HARNESS, dtype: str = "float32"
) -> dict[str, Any]:
    """The model's results on tasks of lm-evaluation-harness (`evaluation.harness.run.run_harness`), on one device."""
    require()
    tokenizer = load_tokenizer(checkpoint)
    use_compilation_cache()
    model = load_layers(checkpoint, dtype=dtype)
    with SlotEngine(model, tokenizer, EngineSettings(context=settings.context)) as engine:
        return run_harness(tasks, engine, tokenizer, settings)


def run_tasks(opened: Sequence[OpenTask], model: Maverick | Unrolled, tokenizer: Tokenizer) -> dict[str, Any]:
    """The model's results on opened tasks, by name, with a progress bar for each."""
    found = {}
    with SlotEngine(model, tokenizer, EngineSettings(context=context_of(opened))) as engine:
        for task in opened:
            count = sum(len(choices) or 1 for choices in task.choices)
            with answer_progress(task.name, count) as on_progress:
                found[task.name] = run_task(task, engine, tokenizer, on_progress)
    return found


@contextlib.contextmanager
def answer_progress(what: str, count: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of `count` answers; call it with the number that are finished."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with ProgressDisplay(what, columns, count) as progress:
        yield lambda done: progress.update(f"{what}: {done:,} of {count:,}", done)
