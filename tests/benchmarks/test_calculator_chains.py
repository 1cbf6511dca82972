"""Documents of GSM8K's calculator chains: steps, latents in their place, and what the model writes itself."""

import json
import pathlib

import numpy as np
import pytest

from benchmarks import calculator_chains as gsm8k
from benchmarks import latent_thoughts as chain
from data.trajectories.kinds import TokenKind
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat.reply import THINKING

TOKENIZER = load_tokenizer(chain.TOKENIZER)
SOLUTION = gsm8k.Solution("Two and three?", ["2+3=5", "5*4=20"], "20")


def solved(replaced: int | None) -> list[int]:
    """Ids of what stands after the question."""
    return gsm8k.document(SOLUTION, replaced, TOKENIZER)[0][len(SOLUTION.question) + 1 :].tolist()


def test_solutions_are_read_with_their_calls(tmp_path):
    rows = [{"question": "Q", "answer": "He has 48/2 = <<48/2=24>>24.\nSo <<24+1,000=1024>>\n#### 1,024"},
            {"question": "R", "answer": "Nothing.\n#### 3"}]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = gsm8k.solutions(path)
    assert found == [gsm8k.Solution("Q", ["48/2=24", "24+1,000=1024"], "1024"), gsm8k.Solution("R", [], "3")]
    assert gsm8k.fitting(found, TOKENIZER) == found[:1]


@pytest.mark.parametrize(("replaced", "left"), [(0, "2+3=5 5*4=20 "), (1, "5*4=20 "), (3, "")])
def test_latents_take_the_place_of_steps_also_of_those_that_are_not_there(replaced, left):
    start, end = (TOKENIZER.controls[name] for name in THINKING)
    assert solved(replaced) == [start, *[chain.LATENT] * replaced, *left.encode(), end, *b"20\n"]
    assert solved(None) == list(b"20\n")


@pytest.mark.parametrize("replaced", [None, 0, 1, 3])
def test_the_model_writes_everything_after_the_latents(replaced):
    part = chain.Part(1, replaced or 0, thoughts=replaced is not None)
    ids, kinds = gsm8k.document(SOLUTION, replaced, TOKENIZER)
    prompt = gsm8k.prompt_of(SOLUTION, part, TOKENIZER)
    assert ids[: len(prompt)].tolist() == prompt
    assert np.isin(kinds[len(prompt) :], (TokenKind.THOUGHT, TokenKind.FINAL_ANSWER)).all()
    thought, answer = gsm8k.said(ids[len(prompt) :].tolist(), TOKENIZER)
    assert answer == "20" and thought == "".join(f"{step} " for step in SOLUTION.steps[replaced or 0 :]) * (
        replaced is not None
    )


def test_variants_go_on_from_the_start_with_equal_updates():
    updates = {name: sum(part.updates for part in parts) for name, parts in gsm8k.VARIANTS.items()}
    assert updates["text"] == updates["latents"] == updates["pauses"] == updates["none"] - updates["start"]
    made = {name: gsm8k.run_config(name, 0, pathlib.Path("work"), pathlib.Path("train.jsonl")) for name in updates}
    assert [name for name, config in made.items() if "init_from" in config["model"]] == ["text", "latents", "pauses"]
    assert [name for name, config in made.items() if config["model"]["latent"]] == ["latents"]
    assert made["latents"]["stages"][1]["model"]["latent"]["passes"] == 2
