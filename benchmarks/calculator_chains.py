#!/usr/bin/env python
"""GSM8K's calculator chains at 3M parameters: right answers of text, latents, pauses and no thoughts.

    python benchmarks/calculator_chains.py --work FOLDER --train gsm8k_train.jsonl --test gsm8k_test.jsonl [--seed 0]
        [--variants start text latents pauses none]

A thought is the chain of a solution's calculator calls, `48/2=24 48+24=72 `, a call a step, as bytes. Training rows are
the solutions of `--train` that have a chain and fit; all questions of `--test` are judged, by the engine, greedily. The
model, its variants and their stages are those of benchmarks/prosqa.py. The last line is one JSON object.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from pydantic import Field

from benchmarks import latent_thoughts as chain
from benchmarks import prosqa
from data.graders.figures import wilson
from data.latents import LatentSteps
from data.order import derive
from data.sources import SOURCES
from data.sources.base import MadeBlock, MadeSource
from data.trajectories.kinds import TokenKind
from maverick_jax.inference.engine import EngineSettings, GenerationRequest, SlotEngine
from maverick_jax.inference.sampling import Sampling
from maverick_jax.pretrained import load_pretrained
from maverick_jax.text import Tokenizer, load_tokenizer
from maverick_jax.text.chat.reply import THINKING

STEPS, LENGTH, ROWS = 3, 448, 8
"""Steps that latents replace in the last stage; tokens of a row; rows of an update."""
END = "\n"
"""Stands after the answer, and nowhere in a chain."""
WRITTEN = 96
"""Most tokens of a thought and an answer."""


class Solution(NamedTuple):
    question: str
    steps: list[str]
    """Calculator calls with their results."""
    answer: str


def solutions(path: pathlib.Path) -> list[Solution]:
    """Those of a file of GSM8K, in order; some have no calculator call."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [Solution(row["question"], re.findall("<<(.*?)>>", row["answer"]),
                     row["answer"].rsplit("####")[-1].strip().replace(",", "")) for row in rows]  # fmt: skip


def document(solution: Solution, replaced: int | None, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids and kinds of a question, `replaced` latents in the place of its first steps, the others, and the answer."""
    question, answer, *steps = tokenizer.encode_batch(
        [solution.question + END, solution.answer + END, *(f"{step} " for step in solution.steps)]
    )
    return prosqa.with_thought(question, steps, answer, replaced, tokenizer, ends=True)


@SOURCES.register
class CalculatorChains(MadeSource):
    """`kind: calculator_chains`: questions of GSM8K with their calculator calls as thoughts."""

    kind: Literal["calculator_chains"] = "calculator_chains"
    """Word problems whose thoughts are calculator calls."""
    format: Annotated[Literal["calculator_chains"], Field(exclude=True)] = "calculator_chains"
    """The same as `kind: calculator_chains`."""
    path: str
    """A file of GSM8K, JSON lines."""
    thoughts: bool = True
    """Whether answers have a chain of thought."""
    latents: LatentSteps = LatentSteps()
    """How many steps of the chain are latents."""

    def identity(self) -> list:
        return ["calculator_chains", 1, self.model_dump(mode="json", include={"path", "thoughts", "latents"})]

    def blocks(self, name: str, tokenizer: Tokenizer) -> Iterator[MadeBlock]:
        chosen = fitting(solutions(pathlib.Path(self.path)), tokenizer)
        replaced = self.latents.of_documents(np.arange(len(chosen)), STEPS, derive(0, "latents"))
        found = [document(solution, int(k) if self.thoughts else None, tokenizer)
                 for solution, k in zip(chosen, replaced, strict=True)]  # fmt: skip
        ids, kinds = (np.concatenate(part) for part in zip(*found, strict=True))
        yield MadeBlock(ids, kinds, np.array([len(part) for part, _ in found], np.int64))


def fitting(given: Sequence[Solution], tokenizer: Tokenizer) -> list[Solution]:
    """The solutions with a calculator call that fit in a row together with latents for steps that they do not have."""
    return [one for one in given if one.steps and len(document(one, 0, tokenizer)[0]) + STEPS <= LENGTH]


# ---- runs ------------------------------------------------------------------------------------------------------------

START, STAGE = 1200, 200
"""Updates of text, and of each stage. About 450 updates read all solutions once."""
VARIANTS = prosqa.variants_of(
    (chain.Part(START),), tuple(chain.Part(STAGE, replaced) for replaced in range(1, STEPS + 1))
)


def run_config(variant: str, seed: int, work: pathlib.Path, train: pathlib.Path) -> dict[str, Any]:
    """The whole config of a run. Rotary angles fit rows of 448 tokens."""
    changes = {"plugins": ["benchmarks.calculator_chains"], "data": {"batch_size": ROWS, "sequence_length": LENGTH}}
    source = {"kind": "calculator_chains", "path": str(train.resolve())}
    config = prosqa.staged_config(variant, VARIANTS, lambda part, number: dict(source), changes, seed, work)
    config["model"] |= {"rope_theta": 1000.0}
    return config


def prompt_of(solution: Solution, part: chain.Part, tokenizer: Tokenizer) -> list[int]:
    """What stands before the first token that the model writes."""
    ids, kinds = document(solution, part.replaced if part.thoughts else None, tokenizer)
    written = np.isin(kinds, (TokenKind.THOUGHT, TokenKind.FINAL_ANSWER))
    return ids[: int(written.argmax())].tolist()


def said(tokens: Sequence[int], tokenizer: Tokenizer) -> tuple[str, str]:
    """The thought and the answer among written tokens. The answer ends with its last line."""
    end = tokenizer.controls[THINKING[1]]
    at = tokens.index(end) if end in tokens else -1
    return tokenizer.decode(tokens[: max(at, 0)]), tokenizer.decode(tokens[at + 1 :]).removesuffix(END)


def measured(variant: str, seed: int, work: pathlib.Path, test: Sequence[Solution]) -> dict[str, Any]:
    """Right answers with Wilson's interval, and how many chains are the solution's."""
    part, tokenizer = VARIANTS[variant][-1], load_tokenizer(chain.TOKENIZER)
    settings = EngineSettings(slots=16, context=1024, queue=len(test), keep_bytes=0, lazy=True)
    stop = frozenset(tokenizer.encode(END))
    with SlotEngine(load_pretrained(chain.folder(variant, seed, work)), tokenizer, settings) as engine:
        asked = [GenerationRequest(prompt_of(one, part, tokenizer), WRITTEN, Sampling(0.0), stop_ids=stop)
                 for one in test]  # fmt: skip
        jobs = [engine.submit(request)[0] for request in asked]
        written = [said(job.result().tokens, tokenizer) for job in jobs]
    share = sum(answer == one.answer for (_, answer), one in zip(written, test, strict=True)) / len(test)
    examples = [[one.answer, *text] for one, text in zip(test, written, strict=True)][:8]
    return {"right": [share, *wilson(share, len(test))], "examples": examples}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for the runs")
    parser.add_argument("--train", type=pathlib.Path, required=True, help="GSM8K's training questions, JSON lines")
    parser.add_argument("--test", type=pathlib.Path, required=True, help="questions that are judged, JSON lines")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    test, runs = solutions(args.test), []
    for variant in args.variants:
        config = run_config(variant, args.seed, args.work, args.train)
        seconds = chain.trained_run(config, chain.folder(variant, args.seed, args.work))
        runs.append({"variant": variant, "cpu_seconds": seconds, **measured(variant, args.seed, args.work, test)})
        print(runs[-1], file=sys.stderr, flush=True)
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
