"""Text that a run's newest checkpoint writes, for its report."""

import pathlib

from launch.report.run_record import SAMPLE, require_run
from maverick_jax.files import write_atomically
from maverick_jax.inference import generate
from maverick_jax.pretrained import load_layers
from maverick_jax.text import load_tokenizer

TEMPERATURE = 0.8


def write_sample(run_dir: str | pathlib.Path, prompt: str, max_tokens: int) -> pathlib.Path:
    """Write `sample.txt` into a run's directory: the prompt and what the model writes after it, at temperature 0.8.
    Returns its path. Raises InputError if the directory is no run or has no checkpoint."""
    path = require_run(run_dir) / SAMPLE
    tokenizer, model = load_tokenizer(run_dir), load_layers(run_dir)
    text = generate(model, tokenizer, prompt, max_tokens, TEMPERATURE, 0)
    write_atomically(path, (prompt + text).encode())
    return path
