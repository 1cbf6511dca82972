"""Base of all config sections: frozen; unknown keys and numbers that are not finite are errors."""

import difflib
from collections.abc import Iterable

import pydantic


class Section(pydantic.BaseModel):
    """A part of a config. Unknown keys, infinities and NaN are errors; values cannot change after validation."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        strict=True,
        allow_inf_nan=False,
    )


SYNONYMS = {
    **dict.fromkeys(("lr", "max_lr", "peak_lr"), "learning_rate"),
    "min_lr": "min_ratio",
    "wd": "weight_decay",
    **dict.fromkeys(("beta1", "adam_beta1"), "b1"),
    **dict.fromkeys(("beta2", "adam_beta2"), "b2"),
    "epsilon": "eps",
    **dict.fromkeys(("lr_schedule", "lr_scheduler", "lr_scheduler_type"), "optimizer.schedule"),
    **dict.fromkeys(("warmup", "warmup_ratio", "warmup_iters"), "warmup_steps"),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "clip_grad"), "clip_norm"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum"), "accumulation_steps"),
    **dict.fromkeys(("max_steps", "num_steps", "max_iters"), "run.steps"),
    **dict.fromkeys(("max_seq_length", "seq_len", "seq_length", "context_length", "block_size"), "sequence_length"),
    **dict.fromkeys(("bs", "global_batch_size"), "batch_size"),
    **dict.fromkeys(("eval_interval", "eval_steps"), "eval_every"),
    **dict.fromkeys(("save_steps", "save_every", "save_interval"), "checkpoint.every"),
    "save_total_limit": "checkpoint.keep",
    **dict.fromkeys(("logging_steps", "log_every", "log_interval"), "logging.every"),
    **dict.fromkeys(("output_dir", "out_dir"), "run.dir"),
    "r": "rank",
    "lora_alpha": "alpha",
    "temp": "temperature",
    **dict.fromkeys(("max_new_tokens", "max_length"), "max_tokens"),
}
"""What other programs call a key or an option, and its name here: with its section where several have such a key."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean X?` for the choice that is called `word` elsewhere or is most similar, or an empty string."""
    choices = [str(choice) for choice in choices]
    ours = SYNONYMS.get(_plain(word), "").rpartition(".")[2]
    called = [choice for choice in choices if ours and _plain(choice) == ours]
    near = called or difflib.get_close_matches(str(word), choices, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _plain(name: str) -> str:
    """The option `--top-p` as the key `top_p`."""
    return str(name).lstrip("-").replace("-", "_").lower()
