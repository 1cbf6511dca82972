"""`maverick generate`: continuations of prompts from the command line or a file."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import IO, Any

from maverick_jax.errors import InputError, harmless
from maverick_jax.images import open_image
from maverick_jax.inference import Sampling, answers, prompt_ids_of, stop_ids, stream
from maverick_jax.inference.engine import GenerationRequest
from maverick_jax.inference.engine.forward import Unrolled
from maverick_jax.pretrained import load_layers
from maverick_jax.text import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """What to generate. Exactly one of `prompt` and `prompts` (a file) is given."""

    prompt: str | None
    prompts: str | None
    images: Sequence[str] = ()
    """Image files to show before each prompt."""
    samples: int = 1
    """Continuations of each prompt."""
    max_tokens: int = 128
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0


def generate(checkpoint: str, wanted: GenerateOptions, out: IO[str] | None) -> dict[str, Any]:
    """The continuations, also written to `out`: one alone as it is generated, several each under a heading.

    Returns `prompt` and `text` of one continuation; of several, `samples`, a list of `prompt`, `sample` and `text`.
    Raises InputError for prompts that cannot be read, before the model is loaded.
    """
    prompts = _prompts(wanted)
    images = [open_image(path) for path in wanted.images]
    tokenizer = load_tokenizer(checkpoint)
    model = load_layers(checkpoint)
    starts = [prompt_ids_of(model.config, tokenizer, prompt, images) for prompt in prompts]
    stops, tiles = stop_ids(tokenizer), starts[0][1]
    if len(prompts) * wanted.samples == 1:
        ids = starts[0][0]
        request = GenerationRequest(ids, wanted.max_tokens, wanted.sampling, wanted.seed, stops, tiles=tiles)
        text = _streamed(model, tokenizer, prompts[0], request, out)
        return {"prompt": prompts[0], "text": text}
    ids = [start for start, _ in starts for _ in range(wanted.samples)]
    written = answers(model, tokenizer, ids, wanted.max_tokens, wanted.sampling, wanted.seed, tiles=[tiles] * len(ids))
    texts = [tokenizer.decode([token for token in tokens if token not in stops]) for tokens in written]
    found = []
    for i, text in enumerate(texts):
        prompt, sample = divmod(i, wanted.samples)
        found.append({"prompt": prompts[prompt], "sample": sample, "text": text})
        if out:
            heading = f"--- prompt {prompt + 1}, sample {sample + 1}"
            out.write(harmless(f"{heading}\n{prompts[prompt]}{text}\n"))
    return {"samples": found}


def _prompts(wanted: GenerateOptions) -> list[str]:
    if (wanted.prompt is None) == (wanted.prompts is None):
        raise InputError("maverick generate: give either --prompt TEXT or --prompts FILE")
    if wanted.prompts is None:
        return [wanted.prompt or ""]
    path = pathlib.Path(wanted.prompts)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    is_json = path.suffix == ".jsonl"
    found = [_prompt_of(line, f"{path}:{i}") if is_json else line for i, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"{path}: holds no prompt; expected one per line, or JSON lines with `prompt`")
    return found


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise InputError(f'{where}: expected an object with a text `prompt`, such as {{"prompt": "Once"}}')
    return prompt


def _streamed(
    model: Unrolled, tokenizer: Tokenizer, prompt: str, request: GenerationRequest, out: IO[str] | None
) -> str:
    """Write the prompt and then each piece of its continuation to `out` as it is generated; return the continuation."""
    show = lambda text: out.write(harmless(text)) and out.flush() if out else None
    show(prompt)
    pieces = []
    for piece in stream(model, tokenizer, request):
        pieces.append(piece)
        show(piece)
    show("\n")
    return "".join(pieces)
