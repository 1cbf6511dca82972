"""Answers and texts as they are written: seeds, ends, settings."""

import jax
import numpy as np
import pytest

from maverick_jax.errors import InputError
from maverick_jax.inference import Sampling, answers, generate, stop_ids, stream
from maverick_jax.inference.engine import GenerationRequest
from maverick_jax.sharding import make_mesh
from maverick_jax.text.tokenizers.byte_level import ByteTokenizer
from tests.parity.oracle import Case, case, our_model, random_parameters, random_tokens, shapes, torch_logits, variant

TEXT = variant(vocab_size=271, num_hidden_layers=2, no_rope_layer_interval=2)
"""A model with the vocabulary of the byte tokenizer."""
BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def model():
    return our_model(TEXT, random_parameters(shapes(TEXT)))


@pytest.mark.oracles
def test_greedy_tokens_are_those_of_the_public_model(model):
    torch = Case(TEXT, random_parameters(shapes(TEXT))).torch
    prompts = [list(map(int, random_tokens(TEXT, 1, n, seed=n)[0])) for n in (5, 13)]
    for prompt, written in zip(prompts, answers(model, BYTES, prompts, 20, Sampling(0.0)), strict=True):
        text = [*prompt, *written]
        assert list(torch_logits(torch, np.array([text]))[0].argmax(-1)[len(prompt) - 1 : -1]) == written
        assert len(written) == 20 or written[-1] in stop_ids(BYTES)


def test_seed_decides_the_text_and_each_piece_comes_when_it_is_written(model):
    ids, drawn = [BYTES.bos_id, *BYTES.encode("To be")], Sampling(1.0)
    texts = ["".join(stream(model, BYTES, GenerationRequest(ids, 12, drawn, seed))) for seed in (3, 4)]
    assert texts[0] != texts[1]
    assert texts[0] == generate(model, BYTES, "To be", 12, seed=3)
    both = answers(model, BYTES, [ids, ids], 12, drawn, seed=3)
    assert [BYTES.decode(tokens) for tokens in both] == texts


def writes(token: int):
    """A model that always writes `token`: its output matrix uses one feature, which the final norm makes constant."""
    changes = {name: p * np.float32(0) for name, p in random_parameters(shapes(TEXT)).items()}
    changes["embed"] = np.ones_like(changes["embed"])
    changes["norm"] = np.ones_like(changes["norm"])
    changes["head"][:, token] = 1
    return our_model(TEXT, changes)


@pytest.mark.parametrize("token", ["x", "<|end_of_text|>", "<|eot|>", "<|eom|>"])
def test_text_ends_at_a_stop_token(token):
    written = writes(BYTES.controls.get(token, ord("x")))
    assert generate(written, BYTES, "abc", 3, temperature=0) == ("xxx" if token == "x" else "")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": -1.0}, "temperature: -1.0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
def test_arguments_out_of_range_are_refused(model, settings, said):
    with pytest.raises(InputError, match=said):
        generate(model, BYTES, "abc", **settings)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(InputError, match="expected the tokenizer of this model"):
        generate(case("maverick").ours, BYTES, "abc")


@pytest.mark.slow
def test_a_mesh_gives_the_same_text(model):
    """With rows that are added so that the mesh divides the slots."""
    spread = our_model(TEXT, random_parameters(shapes(TEXT)), make_mesh({"fsdp": 2, "expert": 2}, jax.devices()[:4]))
    assert generate(spread, BYTES, "To be", 8, temperature=0) == generate(model, BYTES, "To be", 8, temperature=0)
