"""`maverick eval`: held-out loss of a checkpoint, the objective's other metrics, tool calls and answers to tasks."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.inference.answers import answers
from maverick_jax.inference.prompts import stop_ids
from maverick_jax.inference.sampling import Sampling
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import config_of, load_pretrained
from maverick_jax.text import Tokenizer, load_tokenizer
from train.config_files import read_config
from train.evaluate_tasks import answer_progress, evaluate_tasks, run_tasks
from train.evaluation.by_position import loss_by_position
from train.evaluation.carried import context_of, objective_state
from train.evaluation.generated import generated
from train.evaluation.tasks import open_tasks
from train.inherited import argument
from train.run_folder import config_of_run, stage_of
from train.session import Parts, Session


def evaluate(
    checkpoint: str,
    path_or_name: str | None = None,
    overrides: Iterable[str] = (),
    *,
    generate: int = 0,
    max_tokens: int = 256,
    tasks: Sequence[str] = (),
    allow_code: bool = False,
    by_position: bool = False,
) -> dict[str, Any]:
    """Held-out loss of `checkpoint` (run directory, checkpoint or Hugging Face folder) on the data of a config, by
    default that of its run and stage, and the other metrics of the config's objective. `generate` (`generated`): the
    model writes that many turns of held-out conversations, of at most `max_tokens` tokens each, and its decisions and
    calls are scored. `tasks` (shipped names or files): its answers (`tasks`: `evaluation.tasks.run_task` by name);
    without a config, only they are evaluated. `allow_code`: tasks may run what it writes, in a sandbox. `by_position`:
    also the loss by position in the document (`loss_by_position`).

    The checkpoint's tokenizer is the default of `data.tokenizer`. It runs on one device, whatever `mesh` the config
    has: a checkpoint has the same metrics wherever it was trained.
    Raises InputError when there is no config, when its tokenizer is not the checkpoint's or has more ids than the
    model, when less than a batch is held out, when there are no turns to generate, and, before a model is loaded, for
    unreadable tasks.
    """
    overrides = list(overrides)
    if tasks and path_or_name is None and not overrides and not generate and not by_position:
        return {"checkpoint": checkpoint, "tasks": evaluate_tasks(checkpoint, tasks, allow_code=allow_code)}
    if path_or_name is None:
        path_or_name, overrides = str(config_of_run(checkpoint)), [*stage_of(checkpoint), *overrides]
    config = read_config(path_or_name, overrides, argument("CHECKPOINT", checkpoint))
    if generate and not config.data.has_kinds:
        raise InputError("--generate writes turns of the assistant, and no source has kind: trajectories or pictures")
    dtype = config.model.param_dtype
    config = config.model_copy(update={"model": config_of(checkpoint, dtype)})
    opened = open_tasks(tasks, load_tokenizer(config.data.tokenizer), allow_code, config.model.vision) if tasks else []
    session = Session.open(config, Parts(held_out=True, references=True, one_device=True))
    model = load_pretrained(checkpoint, mesh=session.mesh, dtype=dtype)
    with jax.set_mesh(session.mesh):
        context = context_of(config.objective, checkpoint, model, session.load_references())
        found = {"checkpoint": checkpoint} | session.held_out.measure(config.objective)(model, context)
        if by_position:
            found["loss_by_position"] = loss_by_position(model, session.held_out)
    if remarks := config.objective.remarks(found, objective_state(checkpoint)):
        found["remarks"] = remarks
    data = session.held_out.feed.train
    if generate:
        answer = functools.partial(_answers, model, data.tokenizer, max_tokens)
        found["generated"] = generated(answer, data, generate, stop_ids(data.tokenizer))
    if tasks:
        found["tasks"] = run_tasks(opened, model, data.tokenizer)
    return found


def _answers(
    model: Maverick, tokenizer: Tokenizer, most: int, prompts: Sequence[list[int]], tiles: Sequence[np.ndarray | None]
) -> list[list[int]]:
    """What the model writes after each prompt, at most `most` tokens, the likeliest each time, with a progress bar."""
    with answer_progress("turns", len(prompts)) as shown:
        return answers(model, tokenizer, prompts, most, Sampling(temperature=0.0), on_progress=shown, tiles=tiles)
